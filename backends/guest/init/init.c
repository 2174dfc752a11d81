// SPDX-License-Identifier: Apache-2.0
/*
 * First process of a Linux guest. Loads the modules of /modules.order, finds the ports to the host, makes the image's
 * rootfs the root, makes the container's mounts, sets its interfaces up, runs the process of /runphi.conf and tells the
 * host how it ended. init.h has the lines spoken on the control port.
 */
#define _GNU_SOURCE
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define CONSOLE_PORT "org.runphi.console"
#define CONTROL_PORT "org.runphi.control"
#define SHARE_TAG "rootfs"
#define ROOTFS_DISK "/dev/xvda"
/* A device shows up some milliseconds after its driver is loaded; software emulation may need far more. */
#define DEVICE_WAIT_MS 10000

static struct ports ports = { -1, -1, NULL };
static struct conf conf;

static _Noreturn void power_off(void)
{
	control_wait_poweroff(ports.control);
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT); /* no ACPI: the host runs us with -no-reboot */
	for (;;)
		pause();
}

static _Noreturn void fail(const char *what)
{
	char text[200];

	fprintf(stderr, "init: cannot %s: %s\n", what, strerror(errno)); /* the kernel's console */
	if (conf.console) {
		snprintf(text, sizeof(text), "error=cannot %s: %s", what, strerror(errno));
		cell_say(&conf, ports.console, text);
		cell_end(&conf, ports.console, EXIT_CANNOT_RUN);
	}
	control_send(ports.control, "error cannot %s: %s", what, strerror(errno));
	control_send(ports.control, "exit %d", EXIT_CANNOT_RUN);
	power_off();
}

void load_modules(const char *name)
{
	FILE *list = fopen(name, "re");
	char path[256];

	while (list && fgets(path, sizeof(path), list)) {
		int fd;

		path[strcspn(path, "\n")] = '\0';
		fd = open(path, O_RDONLY | O_CLOEXEC);
		/* a module the machine has no device for may refuse; what is really lacking shows below */
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			fprintf(stderr, "init: cannot load %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (list)
		fclose(list);
}

static int listen_for_devices(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("listen for devices");
	return fd;
}

/* Opens the port with this name, if it is there. */
static int open_port(const char *wanted)
{
	DIR *directory = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int port = -1;

	while (port < 0 && directory && (entry = readdir(directory))) {
		char path[300], name[64] = "";
		int fd;

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, name, sizeof(name) - 1) > 0) {
			name[strcspn(name, "\n")] = '\0';
			if (strcmp(name, wanted) == 0) {
				snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
				port = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
			}
		}
		close(fd);
	}
	if (directory)
		closedir(directory);
	return port;
}

/*
 * A Xen guest has a console instead of the port, and so may a machine made by hand: there it loses output that the host
 * does not take at once, while Xen's waits.
 */
static int open_hvc(void)
{
	struct termios raw;
	int fd = open("/dev/hvc0", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && tcgetattr(fd, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(fd, TCSANOW, &raw);
	}
	return fd;
}

static void open_ports(int devices)
{
	struct pollfd news = { .fd = devices, .events = POLLIN };
	bool said = false;
	char event[4096];

	if (!conf.console)
		ports.control = xen_control();
	for (;;) {
		if (conf.console) {
			ports.console = cell_console(&conf);
			if (ports.console >= 0)
				return;
		} else {
			if (ports.control < 0)
				ports.control = open_port(CONTROL_PORT);
			/* before the console port is open: until then the host's bytes for the container wait outside */
			if (ports.control >= 0 && !said) {
				control_send(ports.control, "init 1");
				said = true;
			}
			if (ports.console < 0)
				ports.console = open_port(CONSOLE_PORT);
			if (ports.control >= 0 && ports.console < 0)
				ports.console = open_hvc();
			if (ports.control >= 0 && ports.console >= 0)
				return;
		}
		if (poll(&news, 1, DEVICE_WAIT_MS) <= 0) {
			errno = ENODEV;
			fail("open the ports to the host");
		}
		while (read(devices, event, sizeof(event)) > 0)
			;
	}
}

static void mount_at(const char *type, const char *path, unsigned long flags, const char *options, bool make)
{
	if (make)
		mkdir(path, 0755);
	/* a read-only image may lack the directory: the process has to do without, as it would on a plain host */
	if (mount(type, path, type, flags, options) < 0 && errno != ENOENT && errno != ENOTDIR && errno != EBUSY)
		fprintf(stderr, "init: cannot mount %s: %s\n", path, strerror(errno));
}

/* A disk shows up some time after its driver was loaded. */
static int mount_disk(int devices, unsigned long flags)
{
	struct pollfd news = { .fd = devices, .events = POLLIN };
	char event[4096];

	while (mount(ROOTFS_DISK, "/rootfs", "ext4", flags, NULL) < 0) {
		if ((errno != ENOENT && errno != ENXIO) || poll(&news, 1, DEVICE_WAIT_MS) <= 0)
			return -1;
		while (read(devices, event, sizeof(event)) > 0)
			;
	}
	return 0;
}

/* The share holds the rootfs and, beside it, what bind mounts show. */
static int mount_share(int *share)
{
	mkdir("/share", 0755);
	if (mount(SHARE_TAG, "/share", "virtiofs", 0, NULL) < 0)
		return -1;
	*share = open("/share", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return *share < 0 ? -1 : mount("/share/rootfs", "/rootfs", NULL, MS_BIND, NULL);
}

/* Returns the directory with what is shared, or with copies in the RAM disk; -1 = there is none. */
static int enter_rootfs(const struct conf *conf, int devices)
{
	int failed, share = open("/share", O_PATH | O_DIRECTORY | O_CLOEXEC);

	mkdir("/rootfs", 0755);
	if (strcmp(conf->rootfs, "ramdisk") == 0)
		failed = mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL);
	else if (strcmp(conf->rootfs, "disk") == 0)
		failed = mount_disk(devices, 0);
	else
		failed = mount_share(&share);
	if (failed)
		fail("mount the rootfs");
	if (chdir("/rootfs") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("enter the rootfs");
	return share;
}

static void mount_system(const struct conf *conf)
{
	const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mount_at("proc", "/proc", safe, NULL, true);
	mount_at("sysfs", "/sys", safe, NULL, true);
	mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755", true);
	mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5", true);
	if (!conf->own_mounts) {
		mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777", true);
		mount_at("mqueue", "/dev/mqueue", safe, NULL, true);
		mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755", false);
	}
	unlink("/dev/ptmx");
	if (symlink("pts/ptmx", "/dev/ptmx") < 0 || symlink("/proc/self/fd", "/dev/fd") < 0 ||
	    symlink("/proc/self/fd/0", "/dev/stdin") < 0 || symlink("/proc/self/fd/1", "/dev/stdout") < 0 ||
	    symlink("/proc/self/fd/2", "/dev/stderr") < 0)
		fprintf(stderr, "init: /dev is not complete: %s\n", strerror(errno));
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd >= 0) {
		ioctl(fd, SIOCSIFFLAGS, &request);
		close(fd);
	}
}

int main(void)
{
	struct process process;
	char error[256];
	const char *failed;
	sigset_t children;
	int code, devices, share;

	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	signal(SIGPIPE, SIG_IGN);

	mount_at("devtmpfs", "/dev", 0, NULL, true);
	mount_at("sysfs", "/sys", 0, NULL, true);
	conf_read(&conf, "/runphi.conf");
	devices = listen_for_devices();
	load_modules("/modules.order");
	open_ports(devices);
	if (conf.net && (failed = net_set_up(ports.control, devices)))
		fail(failed);
	share = enter_rootfs(&conf, devices);
	close(devices);
	mount_system(&conf);
	if ((failed = mounts_make(&conf, share)))
		fail(failed);
	if (share >= 0)
		close(share);
	if (conf.readonly && mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
		fail("make the rootfs read-only");
	loopback_up();
	if (conf.hostname)
		sethostname(conf.hostname, strlen(conf.hostname));

	code = process_start(&conf, &process, error, sizeof(error));
	if (code == 0) {
		control_send(ports.control, "ready");
		cell_say(&conf, ports.console, "ready");
		ports.mark = conf.mark;
		code = relay(&ports, &process, conf.tty);
	} else if (conf.console) {
		char word[sizeof(error) + 8];

		snprintf(word, sizeof(word), "error=%s", error);
		cell_say(&conf, ports.console, word);
	} else {
		control_send(ports.control, "error %s", error);
	}
	if (conf.console)
		cell_end(&conf, ports.console, code);
	control_send(ports.control, "exit %d", code);
	sync();
	power_off();
}
