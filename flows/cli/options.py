"""Options that several verbs share: one name, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Input = Annotated[Path, typer.Option("--input", "-i", help="Crystals: CSV with a cif column, or what ASE reads.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="CSV to write, or another format by the ending.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
Trust = Annotated[bool, typer.Option("--trust", help="Load a MACE file, which is a pickle and can run code.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Potential = Annotated[
    str, typer.Option(help="chgnet, sevennet, mace:NAME, mace:PATH, or an ASE calculator as module:Class.")
]
Environment = Annotated[
    str | None,
    typer.Option(help="Overlay or interpreter that has the potential's packages; it then runs in worker processes."),
]
