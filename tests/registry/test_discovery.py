"""Finding plugins: from metadata alone, in an order that installation cannot change, narrowed by the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwenimage_core import discovery
from qwenimage_core.errors import ConflictError, PluginError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.registry import PluginRegistry


class Idle:
    """The smallest plugin there is."""

    NAME = "idle"

    @hookimpl
    def check_request(self, ctx):
        return None


def names(registry: PluginRegistry) -> list[str]:
    return [record.name for record in registry.records]


def test_finding_imports_no_plugin(install) -> None:
    install("loud", "raise SystemError('imported')")
    (record,) = PluginRegistry.discover().records
    assert (record.name, record.distribution, record.version) == ("loud", "qwenimage-loud", "0.1.0")
    assert (record.source, record.state, record.error) == ("entry point", "found", None)
    assert "plugin_qwenimage_loud" not in sys.modules


def test_finding_imports_no_torch(install, tmp_path: Path) -> None:
    install("edit")
    code = """
import sys
from qwenimage_core.registry import PluginRegistry
assert "edit" in [r.name for r in PluginRegistry.discover().records]
print(sorted({"torch", "transformers", "numpy", "plugin_qwenimage_edit"} & set(sys.modules)))
"""
    path = [str(tmp_path / "site"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("order", [("b", "a", "c"), ("c", "b", "a")])
def test_order_is_by_name_whatever_was_installed_first(install, order) -> None:
    for name in order:
        install(name)
    registry = PluginRegistry.discover([Idle()])
    assert names(registry) == ["a", "b", "c", "idle"]
    registry.load_all()
    assert [p.name for p in registry.loaded] == ["a", "b", "c", "idle"]
    given = {"c_amount", "a_amount", "b_amount"}
    assert [p.name for p in registry.active(given)] == ["a", "b", "c"]


def test_the_scan_is_kept_until_refresh(install, tmp_path: Path) -> None:
    install("one")
    assert names(PluginRegistry.discover()) == ["one"]
    from .conftest import install_into

    install_into(tmp_path / "site", "qwenimage-two", {"two": "plugin_two"})
    assert names(PluginRegistry.discover()) == ["one"]
    discovery.refresh()
    assert names(PluginRegistry.discover()) == ["one", "two"]


def test_two_distributions_with_one_name_are_an_error_that_lists_both(install) -> None:
    install("edit", version="0.3.1")
    install("edit", distribution="other-edit", version="2.0")
    with pytest.raises(ConflictError) as caught:
        PluginRegistry.discover()
    text = str(caught.value)
    assert "edit of qwenimage-edit 0.3.1" in text
    assert "edit of other-edit 2.0" in text
    assert "QWENIMAGE_DISABLE_PLUGINS=other-edit" in text


def test_blocking_one_distribution_mends_a_double_name(install, monkeypatch) -> None:
    install("edit", version="0.3.1")
    install("edit", distribution="other-edit", version="2.0")
    monkeypatch.setenv(discovery.DISABLE, "other-edit")
    (record,) = PluginRegistry.discover().records
    assert (record.distribution, record.state) == ("qwenimage-edit", "found")


def test_allow_and_disable_lists_leave_blocked_records_that_say_why(install, monkeypatch) -> None:
    for name in ("edit", "eligen", "layered"):
        install(name)
    monkeypatch.setenv(discovery.ALLOW, "edit, Eligen")
    monkeypatch.setenv(discovery.DISABLE, "qwenimage_eligen")
    registry = PluginRegistry.discover()
    assert {r.name: r.state for r in registry.load_all()} == {
        "edit": "loaded",
        "eligen": "blocked",
        "layered": "blocked",
    }
    assert "QWENIMAGE_DISABLE_PLUGINS=qwenimage_eligen" in str(registry.record("eligen").error)
    assert "QWENIMAGE_PLUGINS=edit, Eligen" in str(registry.record("layered").error)
    assert "plugin_qwenimage_layered" not in sys.modules


@pytest.mark.parametrize("variable", [discovery.ALLOW, discovery.DISABLE])
def test_a_name_in_the_environment_that_matches_nothing_is_an_error(install, monkeypatch, variable) -> None:
    install("eligen")
    monkeypatch.setenv(variable, "elligen")
    with pytest.raises(PluginError, match="did you mean eligen"):
        PluginRegistry.discover()


def test_allowing_an_absent_first_party_plugin_gives_its_pip_line(install, monkeypatch) -> None:
    monkeypatch.setenv(discovery.ALLOW, "lightning")
    with pytest.raises(PluginError) as caught:
        PluginRegistry.discover()
    assert caught.value.mend == 'pip install "qwenimage-core[lightning]"'


def test_disable_all_blocks_what_is_installed_and_keeps_what_is_given(install) -> None:
    install("edit")
    install("edit", distribution="other-edit")  # even two of one name do no harm then
    registry = PluginRegistry.discover([Idle()], disable_all=True)
    assert {r.name: r.state for r in registry.load_all()} == {"edit": "blocked", "idle": "loaded"}
    assert "--no-plugins" in str(registry.record("edit").error)


def test_an_object_of_an_installed_name_is_an_error_not_an_override(install) -> None:
    install("idle", version="1.2")
    with pytest.raises(ConflictError) as caught:
        PluginRegistry.discover([Idle()])
    assert "qwenimage-idle 1.2" in str(caught.value)
    assert "given as an object" in str(caught.value)


def test_the_installed_plugin_given_as_an_object_is_one_plugin(install) -> None:
    install("edit")
    import plugin_qwenimage_edit  # type: ignore[import-not-found]

    plugin_qwenimage_edit.NAME = "edit"
    (record,) = PluginRegistry.discover([plugin_qwenimage_edit]).records
    assert (record.source, record.distribution) == ("entry point", "qwenimage-edit")


def test_an_object_may_stand_in_for_a_blocked_plugin(install, monkeypatch) -> None:
    install("idle")
    monkeypatch.setenv(discovery.DISABLE, "qwenimage-idle")
    (record,) = PluginRegistry.discover([Idle()]).records
    assert (record.source, record.state) == ("object", "loaded")


def test_giving_and_disabling_one_plugin_is_a_contradiction(install, monkeypatch) -> None:
    install("edit")
    install("idle")
    monkeypatch.setenv(discovery.DISABLE, "idle")
    with pytest.raises(PluginError, match="given explicitly and blocked"):
        PluginRegistry.discover([Idle()])


def test_the_same_object_twice_is_one_plugin_and_two_objects_of_a_name_are_not(install) -> None:
    plugin = Idle()
    assert names(PluginRegistry.discover([plugin, plugin])) == ["idle"]
    with pytest.raises(ConflictError, match="Two plugins are called 'idle'"):
        PluginRegistry.discover([plugin, Idle()])


def test_names_of_objects(install) -> None:
    class Unnamed:
        @hookimpl
        def check_request(self, ctx):
            return None

    assert names(PluginRegistry.discover([Unnamed])) == ["Unnamed"]
    assert names(PluginRegistry.discover([Idle])) == ["idle"]


class TestFiles:
    def test_a_file_is_a_plugin_under_a_private_name(self, install, tmp_path: Path) -> None:
        from .conftest import PLUGIN

        path = tmp_path / "mine.py"
        path.write_text("from __future__ import annotations\n" + PLUGIN.format(field="mine_amount"))
        registry = PluginRegistry.discover([path])
        (record,) = registry.records
        assert (record.name, record.source, record.state) == ("mine", "file", "loaded")
        assert record.version is not None and record.version.startswith("sha256:")
        assert "mine" not in sys.modules
        assert registry.request(prompt="x", mine_amount="3").mine_amount == 3

    def test_its_version_changes_with_its_content(self, install, tmp_path: Path) -> None:
        from .conftest import PLUGIN

        path = tmp_path / "mine.py"
        versions = set()
        for field in ("a", "b", "a"):
            path.write_text(PLUGIN.format(field=field))
            versions.add(PluginRegistry.discover([str(path)]).record("mine").version)
        assert len(versions) == 2

    def test_its_import_error_is_raised_at_once_with_its_cause(self, install, tmp_path: Path) -> None:
        path = tmp_path / "broken.py"
        path.write_text("import no_such_module_here\n")
        with pytest.raises(
            PluginError, match=r"broken\.py cannot be imported: ModuleNotFoundError"
        ) as caught:
            PluginRegistry.discover([path])
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        assert not [name for name in sys.modules if "broken_py" in name]

    @pytest.mark.parametrize("name", ["absent.py", "notes.txt", "."])
    def test_what_is_no_python_file_is_refused(self, install, tmp_path: Path, name: str) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(PluginError, match="single Python file"):
            PluginRegistry.discover([tmp_path / name])

    def test_a_file_of_an_installed_name_is_an_error(self, install, tmp_path: Path) -> None:
        install("edit")
        path = tmp_path / "edit.py"
        path.write_text("from qwenimage_core.hooks import hookimpl\n@hookimpl\ndef check_request(ctx): ...\n")
        with pytest.raises(ConflictError, match="Two plugins are called 'edit'"):
            PluginRegistry.discover([path])
