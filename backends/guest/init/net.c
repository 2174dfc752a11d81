// SPDX-License-Identifier: Apache-2.0
/*
 * Sets the guest's interfaces up as the container's were in the network namespace of the host. The host says so on the
 * control port; runphi_async/host/nic.py writes these lines:
 *   nic WIRE_MAC MAC MTU NAME                                       the interface that now has WIRE_MAC
 *   addr NAME ADDRESS/LENGTH SCOPE FLAGS BROADCAST|-
 *   route NAME DESTINATION/LENGTH GATEWAY|- SOURCE|- SCOPE METRIC FLAGS
 *   net-done
 * Without a `nic` the driver is not even loaded: a container without a network has no interface but lo.
 */
#define _GNU_SOURCE
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The lines were written before the guest's first instruction. */
#define HOST_WAIT_MS 30000
#define DEVICE_WAIT_MS 10000
#define CARRIER_WAIT_MS 2000

struct message {
	struct nlmsghdr header;
	union {
		struct ifaddrmsg address;
		struct rtmsg route;
	} body;
	char room[256];
};

static bool loaded;

static bool read_line(int control, char *line, size_t size)
{
	struct pollfd more = { .fd = control, .events = POLLIN };
	size_t len = 0;

	for (;;) {
		char byte;
		ssize_t n = read(control, &byte, 1);

		if (n == 1 && byte == '\n') {
			line[len] = '\0';
			return true;
		}
		if (n == 1 && len < size - 1)
			line[len++] = byte;
		else if (n <= 0 && poll(&more, 1, HOST_WAIT_MS) <= 0)
			return false;
	}
}

static int ask(unsigned long request, struct ifreq *what)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int result = ioctl(fd, request, what);
	int why = errno;

	close(fd);
	errno = why;
	return result;
}

static bool parse_mac(const char *text, unsigned char mac[6])
{
	return sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6;
}

static bool find(const unsigned char mac[6], char name[IFNAMSIZ])
{
	struct if_nameindex *all = if_nameindex();
	bool found = false;

	for (struct if_nameindex *one = all; one && one->if_index && !found; one++) {
		struct ifreq request = { 0 };

		snprintf(request.ifr_name, IFNAMSIZ, "%s", one->if_name);
		found = ask(SIOCGIFHWADDR, &request) == 0 && request.ifr_hwaddr.sa_family == ARPHRD_ETHER &&
			memcmp(request.ifr_hwaddr.sa_data, mac, 6) == 0;
		if (found)
			memcpy(name, request.ifr_name, IFNAMSIZ);
	}
	if_freenameindex(all);
	return found;
}

/* Brings it up and waits until it carries: what is sent before is lost, and a program would wait a second to try again. */
static int bring_up(struct ifreq *request)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), result;
	struct pollfd news = { .fd = fd, .events = POLLIN };
	char event[4096];

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -1;
	request->ifr_flags = IFF_UP;
	result = ask(SIOCSIFFLAGS, request);
	while (result == 0 && ask(SIOCGIFFLAGS, request) == 0 && !(request->ifr_flags & IFF_RUNNING)) {
		if (poll(&news, 1, CARRIER_WAIT_MS) <= 0)
			break; /* the host's end may be down for good: as with a cable, that is no reason not to run */
		if (read(fd, event, sizeof(event)) < 0)
			break;
	}
	close(fd);
	return result;
}

static int set_nic(const char *line, int devices)
{
	char wire[18], own[18], name[IFNAMSIZ], now[IFNAMSIZ], event[4096];
	unsigned char wire_mac[6], mac[6];
	struct pollfd news = { .fd = devices, .events = POLLIN };
	struct ifreq request = { 0 };
	int mtu;

	errno = EINVAL;
	if (sscanf(line, "nic %17s %17s %d %15s", wire, own, &mtu, name) != 4 || !parse_mac(wire, wire_mac) ||
	    !parse_mac(own, mac))
		return -1;
	if (!loaded)
		load_modules("/modules.net");
	loaded = true;
	while (!find(wire_mac, now)) {
		if (find(mac, now) && strcmp(now, name) == 0)
			return 0; /* said twice: a supervisor died in between */
		if (poll(&news, 1, DEVICE_WAIT_MS) <= 0) {
			errno = ENODEV;
			return -1;
		}
		while (read(devices, event, sizeof(event)) > 0)
			;
	}
	memcpy(request.ifr_name, now, IFNAMSIZ);
	request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
	memcpy(request.ifr_hwaddr.sa_data, mac, 6);
	if (memcmp(mac, wire_mac, 6) != 0 && ask(SIOCSIFHWADDR, &request) < 0)
		return -1;
	request.ifr_mtu = mtu;
	if (ask(SIOCSIFMTU, &request) < 0)
		return -1;
	memcpy(request.ifr_newname, name, IFNAMSIZ);
	if (strcmp(now, name) != 0 && ask(SIOCSIFNAME, &request) < 0)
		return -1;
	memcpy(request.ifr_name, name, IFNAMSIZ);
	return bring_up(&request);
}

static void add(struct message *message, unsigned short type, const void *data, size_t size)
{
	struct rtattr *attribute = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->header.nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = (unsigned short)RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
	message->header.nlmsg_len = (unsigned int)(NLMSG_ALIGN(message->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len));
}

static int send_message(struct message *message)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[512];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), result = -1;

	message->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
	if (sendto(fd, message, message->header.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof(kernel)) > 0 &&
	    recv(fd, &answer, sizeof(answer), 0) > 0) {
		errno = -answer.error.error;
		result = answer.error.error == 0 || answer.error.error == -EEXIST ? 0 : -1;
	}
	close(fd);
	return result;
}

/* Returns the address family, 0 when the text is no address. */
static unsigned char parse_address(const char *text, unsigned char address[16])
{
	unsigned char family = strchr(text, ':') ? AF_INET6 : AF_INET;

	return inet_pton(family, text, address) == 1 ? family : 0;
}

static size_t length_of(unsigned char family)
{
	return family == AF_INET6 ? 16 : 4;
}

static int set_address(const char *line)
{
	char name[IFNAMSIZ], text[64], broadcast[64];
	unsigned char address[16];
	unsigned int length, scope, flags;
	struct message message = { .header.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifaddrmsg)),
				   .header.nlmsg_type = RTM_NEWADDR };

	errno = EINVAL;
	if (sscanf(line, "addr %15s %63[^/]/%u %u %u %63s", name, text, &length, &scope, &flags, broadcast) != 6)
		return -1;
	message.body.address.ifa_family = parse_address(text, address);
	if (!message.body.address.ifa_family)
		return -1;
	message.body.address.ifa_prefixlen = (unsigned char)length;
	message.body.address.ifa_scope = (unsigned char)scope;
	message.body.address.ifa_index = if_nametoindex(name);
	add(&message, IFA_LOCAL, address, length_of(message.body.address.ifa_family));
	add(&message, IFA_ADDRESS, address, length_of(message.body.address.ifa_family));
	add(&message, IFA_FLAGS, &flags, sizeof(flags));
	if (parse_address(broadcast, address))
		add(&message, IFA_BROADCAST, address, 4);
	return send_message(&message);
}

static int set_route(const char *line)
{
	char name[IFNAMSIZ], text[64], gateway[64], source[64];
	unsigned char address[16];
	unsigned int length, scope, metric, flags, index;
	struct message message = { .header.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtmsg)),
				   .header.nlmsg_type = RTM_NEWROUTE };
	struct rtmsg *route = &message.body.route;

	errno = EINVAL;
	if (sscanf(line, "route %15s %63[^/]/%u %63s %63s %u %u %u", name, text, &length, gateway, source, &scope, &metric,
		   &flags) != 8)
		return -1;
	route->rtm_family = parse_address(text, address);
	if (!route->rtm_family)
		return -1;
	route->rtm_dst_len = (unsigned char)length;
	route->rtm_table = RT_TABLE_MAIN;
	route->rtm_protocol = RTPROT_BOOT;
	route->rtm_scope = (unsigned char)scope;
	route->rtm_type = RTN_UNICAST;
	route->rtm_flags = flags;
	if (length)
		add(&message, RTA_DST, address, length_of(route->rtm_family));
	if (parse_address(gateway, address) == route->rtm_family)
		add(&message, RTA_GATEWAY, address, length_of(route->rtm_family));
	if (parse_address(source, address) == route->rtm_family)
		add(&message, RTA_PREFSRC, address, length_of(route->rtm_family));
	if (metric)
		add(&message, RTA_PRIORITY, &metric, sizeof(metric));
	index = if_nametoindex(name);
	add(&message, RTA_OIF, &index, sizeof(index));
	return send_message(&message);
}

const char *net_set_up(int control, int devices)
{
	static char what[300];
	char line[256];

	while (read_line(control, line, sizeof(line))) {
		int result = 0;

		if (strcmp(line, "net-done") == 0)
			return NULL;
		if (strncmp(line, "nic ", 4) == 0)
			result = set_nic(line, devices);
		else if (strncmp(line, "addr ", 5) == 0)
			result = set_address(line);
		else if (strncmp(line, "route ", 6) == 0)
			result = set_route(line);
		else
			control_hold(line);
		if (result < 0) {
			int why = errno;

			snprintf(what, sizeof(what), "set up the network (%s)", line);
			errno = why;
			return what;
		}
	}
	errno = ETIMEDOUT;
	return "hear what the network is like";
}
