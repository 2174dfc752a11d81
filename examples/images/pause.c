// SPDX-License-Identifier: Apache-2.0
// The only program of the pause image: it holds a pod's namespaces, does nothing and ends when told to.

#include <signal.h>
#include <unistd.h>

static void end(int number)
{
    (void)number;
    _exit(0);
}

int main(void)
{
    signal(SIGCHLD, SIG_IGN); // in a shared pid namespace it is the parent of orphans: the kernel buries them
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
