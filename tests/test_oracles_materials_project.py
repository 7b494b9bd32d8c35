"""Fetching with mp-api's real client from a server on this machine that answers in the recorded shape."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

import pandas as pd
import pytest
from ase.build import bulk
from pymatgen.entries.computed_entries import ComputedStructureEntry
from typer.testing import CliRunner

from flows.cli import app
from loop.errors import ConfigError, InputError
from oracles.potentials.calculator import to_structure
from oracles.references.materials_project import canonical, fetch
from tests.crystals import nacl

SECRET = "abcdefghijklmnopqrstuvwxyz012345"  # as long as real keys are


def documents() -> list[dict]:
    """Thermo documents of sodium, chlorine (a made-up cell) and salt."""
    sodium, chlorine = to_structure(bulk("Na")), to_structure(bulk("Ar")).copy()
    chlorine.replace(0, "Cl")
    made = []
    for number, (structure, energy) in enumerate([(sodium, -1.3), (chlorine, -1.8), (nacl(), -3.4)]):
        identifier, correction = f"mp-{number + 1}", -0.614 * structure.composition["Cl"] * (len(structure) > 1)
        adjustment = {
            "@module": "pymatgen.entries.computed_entries", "@class": "ConstantEnergyAdjustment", "value": correction,
            "uncertainty": 0.0, "name": "MP2020 anion correction (Cl)", "cls": {}, "description": "",
        }  # fmt: skip
        entry = ComputedStructureEntry(
            structure, energy * len(structure), parameters={"run_type": "GGA", "is_hubbard": False, "hubbards": {}},
            data={"material_id": identifier, "oxide_type": "None"}, entry_id=f"{identifier}-GGA",
        ).as_dict()  # fmt: skip
        entry["energy_adjustments"] = [adjustment] if correction else []
        entry["correction"] = correction
        system = "-".join(sorted({site.specie.symbol for site in structure}))
        made.append({"thermo_type": "GGA_GGA+U", "entries": {"GGA": entry}, "chemsys": system})
    return made


class Server(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    status = 200

    def do_GET(self):
        address = urlparse(self.path)
        if address.path.endswith("heartbeat"):
            body = {"status": "OK", "db_version": "2026.10.1", "version": "0.85", "access_controlled_batch_ids": []}
            return self.answer(200, body)
        query = parse_qs(address.query)
        Server.asked.append(self.path)
        if Server.status != 200 or self.headers.get("x-api-key") != SECRET:
            return self.answer(403, {"message": f"Invalid key {self.headers.get('x-api-key')}"})
        systems = query.get("chemsys", [""])[0].split(",")
        data = [document for document in documents() if document["chemsys"] in systems]
        fields = query.get("_fields", ["entries"])[0].split(",")
        data = [{name: document[name] for name in fields if name in document} for document in data]
        return self.answer(200, {"data": data, "meta": {"total_doc": len(data), "max_limit": 1000}})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("MP_API_KEY", SECRET)
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "status", 200)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_chemical_system_comes_with_its_elements_and_is_cached(endpoint, tmp_path):
    found = fetch(["Na-Cl"], tmp_path, endpoint=endpoint)
    frame = found.frame.set_index("material_id")
    assert found.version == "2026.10.1"
    assert found.downloaded == ("Cl-Na",)
    assert set(frame["chemsys"]) == {"Na", "Cl", "Cl-Na"}
    assert frame["uncorrected_energy_per_atom"]["mp-3"] == pytest.approx(-3.4)
    assert frame["energy_per_atom"]["mp-3"] == pytest.approx(-3.4 - 0.614 / 2)
    assert (frame["e_above_hull"] == 0).all()
    asked = len(Server.asked)
    assert asked > 0
    again = fetch(["Cl-Na", "Na-Cl"], tmp_path, endpoint=endpoint)
    assert again.downloaded == ()
    assert len(Server.asked) == asked
    pd.testing.assert_frame_equal(again.frame, found.frame)


def test_without_the_network_the_cache_serves(endpoint, tmp_path, monkeypatch):
    fetch(["Na-Cl"], tmp_path, endpoint=endpoint)
    dead = "http://127.0.0.1:1/"
    monkeypatch.delenv("MP_API_KEY")
    assert len(fetch(["Na-Cl"], tmp_path, endpoint=dead).frame) == 3
    with pytest.raises(InputError, match="does not answer"):
        fetch(["Na-Br"], tmp_path, endpoint=dead)


def test_a_wrong_key_is_one_message_that_does_not_show_it(endpoint, tmp_path, monkeypatch):
    wrong = SECRET[::-1]
    monkeypatch.setenv("MP_API_KEY", wrong)
    with pytest.raises(InputError, match="Check MP_API_KEY") as caught:
        fetch(["Na-Cl"], tmp_path, endpoint=endpoint)
    assert wrong not in str(caught.value)
    assert not list(tmp_path.rglob("*.json.gz"))


def test_no_key_is_a_clear_message(endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("MP_API_KEY")
    with pytest.raises(ConfigError, match="set the environment variable MP_API_KEY"):
        fetch(["Na-Cl"], tmp_path, endpoint=endpoint)


def test_a_system_that_is_not_there(endpoint, tmp_path):
    with pytest.raises(InputError, match="holds no entries of K"):
        fetch(["K"], tmp_path, endpoint=endpoint)


@pytest.mark.parametrize("system", ["", "Na_Cl", "Xx-O", "H-He-Li-Be-B-C-N-O-F-Ne"])
def test_what_is_no_system_is_refused(system):
    with pytest.raises(ConfigError, match="chemical system"):
        canonical(system)


def test_from_fetch_to_a_hull_on_the_command_line(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOVERY_LOOP_HOME", str(tmp_path / "home"))
    known, table = str(tmp_path / "known.csv"), str(tmp_path / "table.csv")
    done = CliRunner().invoke(app, ["hull", "fetch", "Na-Cl", "-o", known, "--endpoint", endpoint, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["crystals"] == 3
    assert SECRET not in done.stdout + done.stderr
    assert "CC BY 4.0" in done.stdout
    arguments = ["--energies", "energy_per_atom", "--corrections", "MP2020", "--json"]
    built = CliRunner().invoke(app, ["hull", "build", known, "-o", table, *arguments])
    assert built.exit_code == 0, built.stderr
    assert "MP2020" in json.loads(built.stdout)["energy_type"]
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
