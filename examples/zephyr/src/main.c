/* SPDX-License-Identifier: Apache-2.0 */
/* A Zephyr application that says that it lives, once a second. */

#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

int main(void)
{
	for (int n = 0;; n++) {
		printk("Zephyr in a cell: %d\n", n);
		k_sleep(K_SECONDS(1));
	}
	return 0;
}
