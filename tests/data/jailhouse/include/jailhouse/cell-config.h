/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What generated C source of a cell needs of Jailhouse's header of the same name, written from the measured offsets
 * and values in docs/reference/jailhouse-dialects.md. OMNIVISOR selects that fork's layout of October 2025.
 */
#pragma once

#define PACKED __attribute__((packed))
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

#define JAILHOUSE_X86 0
#define JAILHOUSE_ARM 1
#define JAILHOUSE_ARM64 2
#define JAILHOUSE_CONFIG_REVISION 14
#define JAILHOUSE_CELL_DESC_SIGNATURE "JHCLL"

#define JAILHOUSE_CELL_PASSIVE_COMMREG 0x1
#define JAILHOUSE_CELL_TEST_DEVICE 0x2
#define JAILHOUSE_CELL_AARCH32 0x4
#define JAILHOUSE_CELL_VIRTUAL_CONSOLE_PERMITTED 0x40000000
#define JAILHOUSE_CELL_VIRTUAL_CONSOLE_ACTIVE 0x80000000

#define JAILHOUSE_MEM_READ 0x1
#define JAILHOUSE_MEM_WRITE 0x2
#define JAILHOUSE_MEM_EXECUTE 0x4
#define JAILHOUSE_MEM_DMA 0x8
#define JAILHOUSE_MEM_IO 0x10
#define JAILHOUSE_MEM_COMM_REGION 0x20
#define JAILHOUSE_MEM_LOADABLE 0x40
#define JAILHOUSE_MEM_ROOTSHARED 0x80
#define JAILHOUSE_MEM_NO_HUGEPAGES 0x100
#define JAILHOUSE_MEM_IO_UNALIGNED 0x8000
#define JAILHOUSE_MEM_IO_8 0x10000
#define JAILHOUSE_MEM_IO_16 0x20000
#define JAILHOUSE_MEM_IO_32 0x40000
#define JAILHOUSE_MEM_IO_64 0x80000

#define JAILHOUSE_CON_TYPE_NONE 0
#define JAILHOUSE_CON_TYPE_EFIFB 1
#define JAILHOUSE_CON_TYPE_8250 2
#define JAILHOUSE_CON_TYPE_PL011 3
#define JAILHOUSE_CON_TYPE_XUARTPS 4
#define JAILHOUSE_CON_TYPE_MVEBU 5
#define JAILHOUSE_CON_TYPE_HSCIF 6
#define JAILHOUSE_CON_TYPE_SCIFA 7
#define JAILHOUSE_CON_TYPE_IMX 8
#define JAILHOUSE_CON_TYPE_IMX_LPUART 9
#define JAILHOUSE_CON_TYPE_SCIF 10

#define JAILHOUSE_CON_ACCESS_MMIO 0x1
#define JAILHOUSE_CON_REGDIST_4 0x2
#define JAILHOUSE_CON_FB_1920x1080 0x4
#define JAILHOUSE_CON_INVERTED_GATE 0x1000
#define JAILHOUSE_CON_MDR_QUIRK 0x2000

#define JAILHOUSE_CACHE_L3_CODE 1
#define JAILHOUSE_CACHE_L3_DATA 2
#define JAILHOUSE_CACHE_L3 3
#define JAILHOUSE_CACHE_ROOTSHARED 1

#define JAILHOUSE_PCI_TYPE_DEVICE 1
#define JAILHOUSE_PCI_TYPE_BRIDGE 2
#define JAILHOUSE_PCI_TYPE_IVSHMEM 3
#define JAILHOUSE_PCI_EXT_CAP 0x8000
#define JAILHOUSE_PCICAPS_WRITE 1

#define JAILHOUSE_SHMEM_PROTO_UNDEFINED 0
#define JAILHOUSE_SHMEM_PROTO_VETH 1
#define JAILHOUSE_SHMEM_PROTO_CUSTOM 0x4000
#define JAILHOUSE_SHMEM_PROTO_VIRTIO_FRONT 0x8000
#define JAILHOUSE_SHMEM_PROTO_VIRTIO_BACK 0xc000

#define JAILHOUSE_IVSHMEM_BAR_MASK_INTX { 0xfffff000 }
#define JAILHOUSE_IVSHMEM_BAR_MASK_MSIX { 0xfffff000, 0xfffff000 }
#define JAILHOUSE_IVSHMEM_BAR_MASK_INTX_64K { 0xffff0000 }
#define JAILHOUSE_IVSHMEM_BAR_MASK_MSIX_64K { 0xffff0000, 0xffff0000 }

#define VIRTIO_DEV_NET 1
#define VIRTIO_DEV_BLOCK 2
#define VIRTIO_DEV_CONSOLE 3

#ifdef OMNIVISOR
#define JAILHOUSE_MEM_COLORED 0x200
#define JAILHOUSE_MEM_COLORED_NO_COPY 0x400
#define JAILHOUSE_MEM_TMP_ROOT_REMAP 0x800
#endif

struct jailhouse_console {
	__u64 address;
	__u32 size;
	__u16 type, flags;
	__u32 divider, gate_nr;
	__u64 clock_reg;
} PACKED;

struct jailhouse_cell_desc {
	char signature[5];
	__u8 architecture;
	__u16 revision;
	char name[32];
	__u32 id, flags, cpu_set_size;
#ifdef OMNIVISOR
	__u32 rcpu_set_size, fpga_regions_size;
#endif
	__u32 num_memory_regions, num_cache_regions, num_irqchips, num_pio_regions;
	__u32 num_pci_devices, num_pci_caps, num_stream_ids;
#ifdef OMNIVISOR
	__u32 num_qos_devices, num_rcpu_devices, num_fpga_devices;
#endif
	__u32 vpci_irq_base;
	__u64 cpu_reset_address, msg_reply_timeout;
	struct jailhouse_console console;
} PACKED;

struct jailhouse_memory {
	__u64 phys_start, virt_start, size, flags;
#ifdef OMNIVISOR
	__u64 colors;
#endif
} PACKED;

struct jailhouse_cache {
	__u32 start, size;
	__u8 type, padding;
	__u16 flags;
} PACKED;

struct jailhouse_irqchip {
	__u64 address;
	__u32 id, pin_base, pin_bitmap[4];
} PACKED;

struct jailhouse_pio {
	__u16 base, length;
} PACKED;

struct jailhouse_pci_device {
	__u8 type, iommu;
	__u16 domain, bdf;
	__u32 bar_mask[6];
	__u16 caps_start, num_caps;
	__u8 num_msi_vectors, msi_64bits : 1, msi_maskable : 1;
	__u16 num_msix_vectors, msix_region_size;
	__u64 msix_address;
	__u32 shmem_regions_start;
	__u8 shmem_dev_id, shmem_peers;
	__u16 shmem_protocol;
} PACKED;

struct jailhouse_pci_capability {
	__u16 id, start, len, flags;
} PACKED;

union jailhouse_stream_id {
	__u32 id;
};

#ifdef OMNIVISOR
struct jailhouse_qos_device {
	char name[15];
	__u8 flags;
	__u32 base;
} PACKED;

struct jailhouse_rcpu_device {
	__u32 rcpu_id;
	char name[31], compatible[31];
} PACKED;

struct jailhouse_fpga_device {
	char fpga_dto[32], fpga_module[32], fpga_bitstream[32];
	__u32 fpga_region_id;
	__u64 fpga_conf_addr;
	__u8 fpga_flags;
} PACKED;
#endif
