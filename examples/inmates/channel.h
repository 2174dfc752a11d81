/* SPDX-License-Identifier: Apache-2.0 */
/* Channels in shared memory: between main.c, chan.c (commands) and channel.c (the work). */
#ifndef CHANNEL_H
#define CHANNEL_H

#include "../channels/runphi_channel.h"
#include "hal.h"

#define MAX_CHANNELS 8
#define CTRL_C 0x03
#define CTRL_D 0x04

#pragma GCC visibility push(hidden)

extern struct rpch channels[MAX_CHANNELS];
int channels_find(void);
int channel_put(struct rpch *c, const char *data, uint32_t len);
void channel_echo(struct rpch *c);

/* 0, or -1: there is no channel, or -2: no such command */
int channel_command(const char *text);

/* main.c */
size_t length(const char *s);
const char *argument(const char *text, const char *name);
uint32_t number(const char *s);

#pragma GCC visibility pop

#endif
