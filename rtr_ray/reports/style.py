"""How pages look: colours that most eyes tell apart, on light and on dark; page.css has the rest.

The palette is that of Okabe and Ito (2008), its light colours changed so that a thin line is seen on white.
"""

from __future__ import annotations

from importlib.resources import files

LIGHT = ("#0067b0", "#c9560a", "#00815c", "#b0487f", "#7a5cc2", "#8a6d00", "#3f8fb5", "#5b6570")
DARK = ("#62b3f5", "#f59a52", "#3ccf9f", "#ee8fc2", "#b9a3f5", "#e3c64a", "#8fd3f0", "#a9b4bf")
INK = "#6b7683"


def css() -> str:
    """The style sheet: light, dark where the reader prefers that, and light again on paper."""
    light = _colours(LIGHT, ink="#1d2329", soft="#586370", rule="#d8dde3", paper="#ffffff", panel="#f4f6f8",
                     good="#00704f", bad="#a83c00", cx=INK)  # fmt: skip
    dark = _colours(DARK, ink="#e6eaee", soft="#a3aebb", rule="#3a434d", paper="#14181c", panel="#1e242a",
                    good="#3ccf9f", bad="#f59a52", cx="#8793a0")  # fmt: skip
    slots = "".join(
        f".s{n}{{stroke:var(--c{n})}}.f{n}{{fill:var(--c{n})}}" for n in (*range(len(LIGHT)), "x")
    )
    rest = files(__package__).joinpath("page.css").read_text()
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"@media print{{:root{{color-scheme:light;{light}}}}}\n{slots}\n{rest}"
    )


def _colours(slots: tuple[str, ...], **named: str) -> str:
    numbered = {f"c{number}": colour for number, colour in enumerate(slots)}
    return "".join(f"--{name}:{colour};" for name, colour in (numbered | named).items())
