// SPDX-License-Identifier: Apache-2.0
/* Starts the container's process: its terminal or pipes, user, limits, working directory, and the search in PATH. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* What the child tells its parent when it could not become the process. */
struct failure {
	int code;
	char text[240];
};

static _Noreturn void fail_with(int report, int code, const char *what, const char *name, const char *why)
{
	struct failure failure = { .code = code };

	snprintf(failure.text, sizeof(failure.text), "cannot %s %s: %s", what, name, why);
	if (write(report, &failure, sizeof(failure)) < 0)
		_exit(EXIT_CANNOT_RUN);
	_exit(code);
}

static _Noreturn void fail(int report, int code, const char *what, const char *name)
{
	fail_with(report, code, what, name, strerror(errno));
}

static const char *lookup(char **env, const char *name)
{
	size_t len = strlen(name);

	for (; *env; env++)
		if (strncmp(*env, name, len) == 0 && (*env)[len] == '=')
			return *env + len + 1;
	return NULL;
}

/* HOME of the user from the image's /etc/passwd, where the environment has none: engines leave that to the runtime. */
static void add_home(const struct conf *conf)
{
	static char home[PATH_MAX + 6] = "HOME=/";
	char line[1024];
	FILE *file;
	size_t count = 0;

	if (lookup(conf->env, "HOME"))
		return;
	file = fopen("/etc/passwd", "re");
	while (file && fgets(line, sizeof(line), file)) {
		char *rest = line, *field[7] = { 0 };

		for (int i = 0; i < 7; i++)
			field[i] = strsep(&rest, ":\n");
		if (field[5] && *field[2] && strtoul(field[2], NULL, 10) == conf->uid) {
			snprintf(home, sizeof(home), "HOME=%s", field[5]);
			break;
		}
	}
	if (file)
		fclose(file);
	while (conf->env[count])
		count++;
	conf->env[count] = home;
}

/* A working directory that the image lacks is made, as runc does. */
static void enter_directory(const char *path, int report)
{
	char part[PATH_MAX];

	if (chdir(path) == 0)
		return;
	for (size_t i = 0; path[i] && i < sizeof(part) - 1; i++) {
		part[i] = path[i];
		part[i + 1] = '\0';
		if (i > 0 && (path[i + 1] == '/' || path[i + 1] == '\0'))
			mkdir(part, 0755);
	}
	if (chdir(path) < 0)
		fail(report, EXIT_CANNOT_RUN, "enter", path);
}

static void become_user(const struct conf *conf, int report)
{
	for (size_t i = 0; i < conf->rlimit_count; i++)
		if (setrlimit(conf->rlimits[i].resource, &conf->rlimits[i].limit) < 0)
			fail(report, EXIT_CANNOT_RUN, "set", "a resource limit");
	if (setgroups(conf->group_count, conf->groups) < 0 || setresgid(conf->gid, conf->gid, conf->gid) < 0 ||
	    setresuid(conf->uid, conf->uid, conf->uid) < 0)
		fail(report, EXIT_CANNOT_RUN, "become", "the user");
	if (conf->umask >= 0)
		umask((mode_t)conf->umask);
}

static _Noreturn void execute(const struct conf *conf, int report)
{
	const char *name = conf->args[0], *path = lookup(conf->env, "PATH");
	int worst = ENOENT;

	if (strchr(name, '/')) {
		execve(name, conf->args, conf->env);
		fail(report, errno == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN, "run", name);
	}
	for (path = path ? path : DEFAULT_PATH; *name; path++) {
		size_t len = strcspn(path, ":");
		char full[PATH_MAX];

		snprintf(full, sizeof(full), "%.*s/%s", len ? (int)len : 1, len ? path : ".", name);
		execve(full, conf->args, conf->env);
		if (errno != ENOENT && errno != ENOTDIR)
			worst = errno;
		path += len;
		if (!*path)
			break;
	}
	errno = worst;
	if (worst != ENOENT)
		fail(report, EXIT_CANNOT_RUN, "run", name);
	fail_with(report, EXIT_NOT_FOUND, "run", name, "executable file not found in $PATH");
}

static _Noreturn void child(const struct conf *conf, int in, int out, int report)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	dup2(in, 0);
	dup2(out, 1);
	dup2(out, 2);
	if (conf->tty)
		ioctl(0, TIOCSCTTY, 0);
	enter_directory(conf->cwd, report);
	add_home(conf);
	become_user(conf, report);
	execute(conf, report);
}

/* `near` are the process's ends (in, out), `process` gets ours. */
static int open_terminal(const struct conf *conf, struct process *process, int near[2])
{
	struct winsize size = { .ws_row = (unsigned short)conf->rows, .ws_col = (unsigned short)conf->cols };
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	if (master < 0 || unlockpt(master) < 0)
		return -1;
	/* TIOCGPTPEER: the image may have no /dev to find the name in */
	near[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (near[0] < 0)
		return -1;
	near[1] = near[0];
	if (size.ws_row && size.ws_col)
		ioctl(master, TIOCSWINSZ, &size);
	if (fchown(near[0], conf->uid, (gid_t)-1) < 0)
		return -1;
	process->input = process->output = master;
	return 0;
}

static int open_pipes(const struct conf *conf, struct process *process, int near[2])
{
	int in[2], out[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		return -1;
	/* so that a process that is not root may open /dev/stdout again */
	if (fchown(in[0], conf->uid, conf->gid) < 0 || fchown(out[1], conf->uid, conf->gid) < 0)
		return -1;
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	near[0] = in[0];
	near[1] = out[1];
	process->input = in[1];
	process->output = out[0];
	return 0;
}

int process_start(const struct conf *conf, struct process *process, char *error, size_t error_size)
{
	struct failure failure;
	int near[2], report[2];
	ssize_t n;

	if (!conf->args[0]) {
		snprintf(error, error_size, "cannot run the process: it has no arguments");
		return EXIT_CANNOT_RUN;
	}
	if ((conf->tty ? open_terminal : open_pipes)(conf, process, near) < 0 || pipe2(report, O_CLOEXEC) < 0 ||
	    (process->pid = fork()) < 0) {
		snprintf(error, error_size, "cannot start the process: %s", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	if (process->pid == 0)
		child(conf, near[0], near[1], report[1]);
	close(report[1]);
	close(near[0]);
	if (near[1] != near[0])
		close(near[1]);
	n = read(report[0], &failure, sizeof(failure)); /* ends without a byte when execve closes the pipe */
	close(report[0]);
	if (n != (ssize_t)sizeof(failure))
		return 0;
	snprintf(error, error_size, "%s", failure.text);
	return failure.code;
}
