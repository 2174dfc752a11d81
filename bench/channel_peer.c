/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's side of a channel for the benchmark: `peer FILE SIZE send BYTES` or `peer FILE SIZE echo BYTES`. */
#include "../examples/channels/runphi_channel.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static void rest(void)
{
	nanosleep(&(struct timespec){ 0, 20000 }, NULL);
}

int main(int argc, char **argv)
{
	size_t size = argc == 5 ? strtoul(argv[2], NULL, 0) : 0, left = argc == 5 ? strtoul(argv[4], NULL, 0) : 0;
	int fd = argc == 5 ? open(argv[1], O_RDWR) : -1, echo = argc == 5 && strcmp(argv[3], "echo") == 0;
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct rpch c;
	char data[4096] = "";

	if (memory == MAP_FAILED || rpch_attach(&c, memory, (uint32_t)size, 0))
		return 1;
	rpch_open(&c);
	while (left > 0) {
		uint32_t length = left < sizeof(data) ? (uint32_t)left : sizeof(data);
		int32_t got = echo ? rpch_read(&c, data, length) : (int32_t)length;
		int32_t sent = rpch_write(&c, data, got > 0 ? (uint32_t)got : 0);

		if (got < 0 || sent < 0)
			return 1;
		left -= (size_t)sent;
		if (!sent)
			rest();
	}
	return 0;
}
