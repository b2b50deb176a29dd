"""Variables are read as they were meant, and those of a container platform are no settings."""

from pathlib import Path

import pytest

from streams.environment import PathError, home, read_secret, secret, variables

LINKS = {
    "FUNNEL_SERVICE_HOST": "10.0.0.1",
    "FUNNEL_SERVICE_PORT": "8000",
    "FUNNEL_SERVICE_PORT_HTTP": "8000",
    "FUNNEL_PORT": "tcp://10.0.0.1:8000",
    "FUNNEL_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "FUNNEL_PORT_8000_TCP_PROTO": "tcp",
    "FUNNEL_PORT_8000_TCP_PORT": "8000",
    "FUNNEL_PORT_8000_TCP_ADDR": "10.0.0.1",
    "FUNNEL_PORT_53_UDP": "udp://10.0.0.1:53",
    "FUNNEL_PORT_9_SCTP_ADDR": "10.0.0.1",
    "FUNNEL_NAME": "/app/funnel",
    "FUNNEL_ENV_PYTHON_VERSION": "3.11",
    "FUNNEL_REDIS_SERVICE_HOST": "10.0.0.2",
    "FUNNEL_REDIS_SERVICE_PORT_REDIS": "6379",
    "FUNNEL_REDIS_PORT": "tcp://10.0.0.2:6379",
    "FUNNEL_REDIS_PORT_6379_TCP_ADDR": "10.0.0.2",
    "FUNNEL_REDIS_NAME": "/app/funnel-redis",
    "FUNNEL_REDIS_ENV_REDIS_VERSION": "7.4",
}
"""What Kubernetes and `docker --link` make of services called funnel and funnel-redis."""


def test_service_links_are_no_variables_of_ours() -> None:
    assert variables(LINKS | {"FUNNEL_SEED": "3", "PATH": "/bin"}) == {"FUNNEL_SEED": "3"}


@pytest.mark.parametrize("name", LINKS)
def test_each_form_of_a_link_is_known_alone(name: str) -> None:
    owner = name.partition("_ENV_")[0] + "_NAME"
    assert variables({name: LINKS[name], owner: LINKS.get(owner, "/a/b")}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FUNNEL_PORT", "8000"),
        ("FUNNEL_SERVICE", "10.0.0.1"),
        ("FUNNEL_ENV_X", "1"),
        ("FUNNEL_NAME", "digits"),
        ("FUNNEL_PORT_NAME", "http"),
        ("FUNNEL_HOST_PORT", "80"),
    ],
)
def test_what_only_looks_like_a_link_stays(name: str, value: str) -> None:
    assert variables({name: value}) == {name: value}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a b", "a b"),
        (" a\r\n", "a"),
        ('"a"', "a"),
        ("'a'", "a"),
        ('" a "', "a"),
        ('"a', '"a'),
        ('"', '"'),
        ('""', ""),
        ("a'b'", "a'b'"),
    ],
)
def test_spaces_and_quotes_of_a_file_of_variables_are_removed(given: str, meant: str) -> None:
    assert variables({"FUNNEL_X": given}) == {"FUNNEL_X": meant}


def test_a_secret_is_read_from_the_file_that_a_variable_names(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hush\n")
    assert secret("FUNNEL_API_KEY", {"FUNNEL_API_KEY_FILE": str(file)}) == "hush"
    assert secret("FUNNEL_API_KEY", {"FUNNEL_API_KEY": "mine"}) == "mine"
    assert secret("FUNNEL_API_KEY", {}) == ""


def test_a_file_without_a_secret_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("empty", "binary", "gone", "."):
        with pytest.raises(PathError, match=f"{name} (is empty|cannot be read)"):
            read_secret(tmp_path / name if name != "." else ".")


def test_a_home_directory_is_put_in_or_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert home("~/x") == Path("/somewhere/x")
    assert home("a/~/x") == Path("a/~/x")
    with pytest.raises(PathError, match="~nobody-of-this-name/x has no meaning here"):
        home("~nobody-of-this-name/x")
