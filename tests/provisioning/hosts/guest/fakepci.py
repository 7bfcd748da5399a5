"""fakepci.py FOLDER CARD CARDS SWITCHES: the files of a PCI bus with NVIDIA cards on it.

Enough for `lspci` and for all that reads /sys/bus/pci. Device ids: PCI id database.
"""

import struct
import sys
from pathlib import Path

SLOTS = (0x07, 0x0F, 0x47, 0x4E, 0x87, 0x90, 0xB7, 0xBD)
NVIDIA, NVSWITCH = 0x10DE, 0x1AF1


def add(bus: Path, slot: str, device: int, kind: int) -> None:
    """Write one device's files."""
    folder = bus / "devices" / slot
    folder.mkdir(parents=True)
    config = bytearray(256)
    struct.pack_into("<HH", config, 0, NVIDIA, device)
    config[8:12] = bytes([0xA1, kind & 255, kind >> 8 & 255, kind >> 16])
    struct.pack_into("<HH", config, 0x2C, NVIDIA, 0x1463)
    (folder / "config").write_bytes(config)
    files = {
        "vendor": f"0x{NVIDIA:04x}",
        "device": f"0x{device:04x}",
        "subsystem_vendor": f"0x{NVIDIA:04x}",
        "subsystem_device": "0x1463",
        "class": f"0x{kind:06x}",
        "irq": "0",
        "numa_node": "0",
        "resource": "\n".join(["0x0000000000000000 " * 3] * 7),
        "current_link_speed": "16.0 GT/s PCIe",
        "current_link_width": "16",
        "max_link_speed": "16.0 GT/s PCIe",
        "max_link_width": "16",
    }
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def main(bus: Path, card: int, cards: int, switches: int) -> None:
    """Lay out the bus."""
    for index in range(cards):
        add(bus, f"0000:{SLOTS[index]:02x}:00.0", card, 0x030200)
    for index in range(switches):
        add(bus, f"0000:{0xC4 + index:02x}:00.0", NVSWITCH, 0x068000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2], 16), int(sys.argv[3]), int(sys.argv[4]))
