/* SPDX-License-Identifier: Apache-2.0 */
/* The whole content of the image runphi/static: proves that a guest needs no shell, no libc and no init of its own.
 * usage: hello [EXIT-CODE]   prints a greeting, then waits for a line when the code is "wait", else exits with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	char line[256];

	printf("hello from a static program (%d arguments)\n", argc - 1);
	fflush(stdout);
	if (argc > 1 && !strcmp(argv[1], "wait"))
		return fgets(line, sizeof(line), stdin) ? 0 : 1;
	return argc > 1 ? atoi(argv[1]) : 0;
}
