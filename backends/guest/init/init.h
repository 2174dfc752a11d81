/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of the guest's init: init.c boots, conf.c reads /runphi.conf, mounts.c makes the container's mounts, net.c sets
 * its interfaces up, process.c starts the process, relay.c serves it, xen.c carries the control port of a Xen guest,
 * cell.c the words of a Jailhouse cell.
 *
 * The control port speaks lines. To the host:
 *   init 1               the kernel has come as far as this program, which answers to `echo`; nothing of the container
 *                        has been touched. Always the first word
 *   ready                the process runs
 *   error TEXT           it cannot be run; `exit 126` or `exit 127` follows
 *   written BYTES        all the process ever printed, sent when it has ended
 *   echo WORD            as the host said it
 *   exit N               its exit code, or 128 + signal; then init waits for `poweroff`, because it cannot know
 *                        whether the host has taken the last bytes out of the console port
 * From the host:
 *   winsize ROWS COLS    the terminal's new size
 *   signal N             for the process
 *   echo WORD            to be said back: what was said before it was heard
 *   eof [BYTES]          its input ends, after so many bytes on the console port (without a terminal only)
 *   nic, addr, route     what the interfaces are to be like, ended by `net-done`; see net.c. Only before `ready`, and
 *                        only when /runphi.conf says `net=1`
 *   poweroff             the end; a process that still runs is killed
 *
 * A Jailhouse cell has a console and no control port: the same words stand on the console, see cell.c.
 */
#ifndef INIT_H
#define INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#define MAX_GROUPS 64
#define MAX_RLIMITS 16

/* As shells have it: found but not runnable, not found. */
#define EXIT_CANNOT_RUN 126
#define EXIT_NOT_FOUND 127

struct rlimit_record {
	int resource;
	struct rlimit limit;
};

/* One mount of the container; mounts.c says what the types are. */
struct mount_record {
	unsigned long flags; /* MS_* */
	char *type;
	char *source; /* of a bind mount: its name in the share */
	char *data;   /* "-": none */
	char *destination;
};

struct conf {
	char **args; /* both end with NULL */
	char **env;
	const char *cwd;
	const char *hostname;
	uid_t uid;
	gid_t gid;
	gid_t groups[MAX_GROUPS];
	size_t group_count;
	struct rlimit_record rlimits[MAX_RLIMITS];
	size_t rlimit_count;
	int umask; /* -1: as it is */
	int rows, cols;
	bool tty;
	bool readonly;
	const char *console; /* of a cell: a terminal's path, or "kmsg" */
	const char *mark;    /* of a cell: what marks our own words on the console */
	unsigned long comm;  /* of a cell: address of its communication region, 0 = it has none */
	/* where the image is: "share" (`rootfs` in the virtiofs share), "ramdisk" (in /rootfs already), "disk" (/dev/xvda) */
	const char *rootfs;
	struct mount_record *mounts;
	size_t mount_count;
	bool own_mounts; /* the container said which mounts it wants; else it gets the usual ones */
	bool net;        /* the host will speak of interfaces */
};

struct process {
	pid_t pid;
	int input;  /* what is written here the process reads; -1 = closed */
	int output; /* what the process writes is read here; with a terminal the same as input */
};

/* The ports to the host; -1 = there is none. */
struct ports {
	int console;
	int control;
	const char *mark; /* what marks words on the console of a cell; NULL = there are none */
};

void conf_read(struct conf *conf, const char *path);

/* Makes the container's mounts inside its rootfs, which is the root. `share` is the directory with what is shared, -1 =
 * nothing is. Returns NULL, or what could not be mounted with the reason in errno. */
const char *mounts_make(const struct conf *conf, int share);

/* Sets the interfaces up as the host says on the control port. Returns NULL, or what could not be done. */
const char *net_set_up(int control, int devices);
/* Loads the modules named in a list. */
void load_modules(const char *list);

/* Starts the process. Returns 0, or the exit code when it could not be run, with the reason in `error`. */
int process_start(const struct conf *conf, struct process *process, char *error, size_t error_size);

/* Passes console and control messages on until the process has ended; returns its exit code. */
int relay(const struct ports *ports, struct process *process, bool tty);

void control_send(int control, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Opens the console of a Jailhouse cell; -1 = it is not there yet. */
int cell_console(const struct conf *conf);
/* Says something on its console. */
void cell_say(const struct conf *conf, int console, const char *word);
/* Says how the process ended, on the console and in the communication region, and waits to be stopped. */
_Noreturn void cell_end(const struct conf *conf, int console, int code);
/* Keeps a line that came too early for relay(). */
void control_hold(const char *line);
/* Returns the control port of a Xen guest, -1 when this is none. */
int xen_control(void);
/* Waits until the host says `poweroff`. */
void control_wait_poweroff(int control);

#endif
