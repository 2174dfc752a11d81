/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed-size integers under the names that Jailhouse's configurations use; for tests of generated C source. */
#pragma once
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
