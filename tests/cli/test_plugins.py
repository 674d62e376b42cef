"""`qwenimage plugins list|show|doctor`."""

from __future__ import annotations

import sys

from .conftest import PLUGIN


def test_list_without_plugins_says_how_to_get_one(run, site) -> None:
    assert 'pip install "qwenimage-core[edit]"' in run("plugins", "list").out
    assert run("plugins", "list", "--json").json == {"hook_api": "1.0", "plugins": []}


def test_list_shows_name_version_distribution_state_and_imports_nothing(run, site) -> None:
    site("glow", PLUGIN)
    site("broken", "1 / 0")
    lines = run("plugins", "list").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["broken", "0.1.0", "qwenimage-broken", "found"],
        ["glow", "0.1.0", "qwenimage-glow", "found"],
    ]
    assert not {"fake_glow", "fake_broken"} & set(sys.modules)


def test_list_as_json_has_every_fact(run, glow) -> None:
    (plugin,) = run("plugins", "list", "--json").json["plugins"]
    assert plugin == {
        "name": "glow",
        "version": "0.1.0",
        "distribution": "qwenimage-glow",
        "source": "entry point",
        "target": "fake_glow",
        "state": "found",
        "hooks": [],
        "fields": [],
        "import_ms": None,
        "error": None,
    }


def test_list_shows_what_is_blocked(run, glow, monkeypatch) -> None:
    monkeypatch.setenv("QWENIMAGE_DISABLE_PLUGINS", "glow")
    (plugin,) = run("plugins", "list", "--json").json["plugins"]
    assert plugin["state"] == "blocked" and "QWENIMAGE_DISABLE_PLUGINS=glow" in plugin["error"]["what"]


def test_show_imports_that_plugin_only(run, site, glow) -> None:
    site("other", PLUGIN)
    shown = run("plugins", "show", "glow", "--json").json
    assert shown["state"] == "loaded" and shown["import_ms"] >= 0
    assert shown["hooks"] == ["commands", "request_fields"]
    assert shown["fields"] == ["glow", "glow_pictures", "glow_lamps", "glow_resize"]
    assert "fake_other" not in sys.modules
    text = run("plugins", "show", "glow").out
    assert "glow 0.1.0" in text and "glow_lamps" in text and "qwenimage-glow" in text


def test_show_of_a_failed_plugin_shows_it_and_fails_with_its_error(run, site) -> None:
    site("broken", "1 / 0")
    done = run("plugins", "show", "broken")
    assert done.code == 1
    assert "failed" in done.out and "ZeroDivisionError" in done.err
    assert "fake_broken.py" in run("--debug", "plugins", "show", "broken").err  # where it failed


class TestDoctor:
    def test_all_is_well(self, run, glow) -> None:
        done = run("plugins", "doctor")
        assert done.code == 0
        assert "Everything is in order." in done.out and "qwenimage-core" in done.out

    def test_every_fault_with_what_mends_it(self, run, site, glow) -> None:
        site("broken", "1 / 0")
        site("old", PLUGIN.replace(">=1.0,<2", "<1").replace("glow", "old"))
        done = run("plugins", "doctor")
        assert done.code == 1
        assert "ZeroDivisionError" in done.out and "pip install --upgrade qwenimage-old" in done.out
        told = run("plugins", "doctor", "--json")
        assert told.code == 1
        assert {p["name"]: p["state"] for p in told.json["plugins"]} == {
            "broken": "failed",
            "glow": "loaded",
            "old": "incompatible",
        }
        assert len(told.json["faults"]) == 2 and "torch" in told.json["environment"]

    def test_two_plugins_that_share_a_field(self, run, site, glow) -> None:
        site("shine", PLUGIN)
        done = run("plugins", "doctor", "--json")
        assert done.code == 1
        (fault,) = done.json["faults"]
        assert fault["error"] == "ConflictError" and "glow and shine" in fault["what"]

    def test_two_distributions_of_one_name(self, run, site, tmp_path, monkeypatch) -> None:
        site("glow", PLUGIN)
        info = tmp_path / "more" / "glow_fork-9.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glow-fork\nVersion: 9\n")
        (info / "entry_points.txt").write_text("[qwenimage.plugins]\nglow = fake_glow\n")
        monkeypatch.syspath_prepend(str(tmp_path / "more"))
        from qwenimage_core import discovery

        discovery.refresh()
        done = run("plugins", "doctor")
        assert done.code == 1
        assert "qwenimage-glow 0.1.0" in done.out and "glow-fork 9" in done.out

    def test_a_slow_plugin_that_imports_torch_is_told_where_the_time_goes(self, run, site) -> None:
        site("heavy", "import time\ntime.sleep(0.4)\nimport torch\n" + PLUGIN)
        done = run("plugins", "doctor", "--json")
        assert done.code == 0
        (remark,) = done.json["remarks"]
        assert "heavy takes" in remark
