"""requirements.lock against requirements.txt: every requirement pinned, in range, with hashes."""

import pathlib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = pathlib.Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")


def logical_lines(name):
    text = (REPOSITORY / name).read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def locked():
    """(requirement, its hashes) of every line of the lock."""
    entries = []
    for line in logical_lines("requirements.lock"):
        requirement, *hashes = (part.strip() for part in line.split("--hash="))
        entries.append((Requirement(requirement), hashes))
    return entries


def pins(locked, python):
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    chosen = {}
    for requirement, _ in locked:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in chosen, f"{name} is pinned twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            chosen[name] = specifier.version
    return chosen


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_in_its_range(locked, python):
    chosen = pins(locked, python)
    for line in logical_lines("requirements.txt"):
        requirement = Requirement(line)
        version = chosen.get(canonicalize_name(requirement.name))
        assert version is not None, f"{line}: not in requirements.lock, make it anew"
        assert requirement.specifier.contains(version), f"{line}: the lock has {version}"


def test_every_pin_has_hashes(locked):
    assert len(locked) > 30
    for requirement, hashes in locked:
        assert hashes, requirement
        assert all(len(h) == 71 and h.startswith("sha256:") for h in hashes), requirement


def test_python_311_gets_jax_010_and_later_ones_a_newer_jax(locked):
    jax = {python: pins(locked, python)["jax"] for python in PYTHONS}
    assert jax["3.11"].startswith("0.10.")
    assert not jax["3.12"].startswith("0.10.")
    assert jax["3.13"] == jax["3.12"]


def test_lock_names_no_index_and_no_path():
    text = (REPOSITORY / "requirements.lock").read_text()
    for word in ("://", "index-url", "find-links", "/opt/", "/tmp/", "file:"):
        assert word not in text
