// SPDX-License-Identifier: Apache-2.0
/*
 * Prints how many kHz a guest's time stamp counter has under software emulation, where QEMU hands out the host's own
 * counter. A microvm has nothing to calibrate it against, so bin/prepare-guest measures it for the kernel's command line.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define SAMPLE_NS 200000000

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t ticks(void)
{
#if defined(__x86_64__)
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
#elif defined(__aarch64__)
	uint64_t value;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
	return now(); /* QEMU's own fallback */
#endif
}

int main(void)
{
	uint64_t start = now(), first = ticks(), end, last;

	do {
		end = now();
		last = ticks();
	} while (end - start < SAMPLE_NS);
	printf("%llu\n", (unsigned long long)((last - first) * 1000000 / (end - start)));
	return 0;
}
