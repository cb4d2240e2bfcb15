"""Fetches a GLM checkpoint from a model hub through ``huggingface_hub``, pinned to a commit and checked by hash.

The hub client brings what users have set up: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, proxies; listing,
session, URLs and headers are its own. The bytes are received here, because its download functions start a file over
after a killed process and check sizes only: here a file goes on where it stopped, and is kept only with the hash that
the repository's listing at that commit gives for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import DeviceError, LinkError, ModelInvalid, ModelNotFound
from splitglm_glm.config import CONFIG_FILE, load_config
from splitglm_glm.progress import Progress, silent
from splitglm_glm.staging import require_free
from splitglm_glm.tensor_files import INDEX_FILE, SINGLE_FILE, find_tensor_files
from splitglm_glm.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, GlmTokenizer

_SMALL_FILES: Final = (
    CONFIG_FILE,
    "generation_config.json",
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX_FILE,
)
_MAX_SMALL_BYTES: Final = 64 << 20
_MAX_LISTED: Final = 10_000
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")
_CONVERTED: Final = "use a converted repository, e.g. zai-org/glm-edge-1.5b-chat or zai-org/glm-4-9b-chat-hf"
_TIMEOUT_S: Final = 20.0
_BLOCK_BYTES: Final = 1 << 20
_RETRIES: Final = 4  # in a row, without a byte received
_RETRY_PAUSE_S: Final = 1.0
_PARTIAL_DIRECTORY: Final = ".partial"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit. ``sha256`` for large files, else git's SHA-1 of the blob."""

    name: str
    size_bytes: int
    sha256: str | None
    blob_sha1: str


def resolve(repo: str, revision: str | None, *, offline: bool) -> str:
    """The commit that ``revision`` (branch, tag, commit; by default the main branch) of ``repo`` leads to.

    Raises:
        ModelNotFound: no such repository or revision, or, offline, not in the hub client's cache.
        LinkError: the hub cannot be reached.
    """
    if offline:
        return _cached(repo, revision).name
    with _hub_errors(repo, revision):
        commit = _api().model_info(repo, revision=revision, timeout=_TIMEOUT_S).sha
    if not isinstance(commit, str):
        raise LinkError(f"the hub named no commit for {repo}", "check HF_ENDPOINT")
    return commit


def fetch(repo: str, commit: str, directory: Path, *, offline: bool, progress: Progress = silent) -> None:
    """Bring the checkpoint of ``repo`` at ``commit`` into ``directory``, going on with what is there from before.

    Config and tokenizer come first and are read, so that an unsuitable model is refused before its weights are fetched.

    Raises:
        ModelNotFound, LinkError: as ``resolve``.
        ModelInvalid: no safetensors, unknown architecture, or bytes that differ from the listing's hash.
        StorageFull: not enough room for it.
    """
    if offline:
        _copy_cached(_cached(repo, commit), directory, progress)
        return
    with _hub_errors(repo, commit):
        listed = _list(repo, commit)
    small = [listed[name] for name in _SMALL_FILES if name in listed]
    _refuse_unsuitable(repo, listed)
    for file in small:
        if file.size_bytes > _MAX_SMALL_BYTES:
            raise ModelInvalid(f"{file.name} of {repo} is {file.size_bytes} bytes, over {_MAX_SMALL_BYTES}")
    require_free(directory, sum(file.size_bytes for file in small))
    _download(repo, commit, small, directory, progress)
    load_config(directory / CONFIG_FILE)
    GlmTokenizer.open(directory)
    weights = _weights(repo, listed, directory)
    partials = directory / _PARTIAL_DIRECTORY
    here_bytes = sum(_size_bytes(folder / file.name) for file in weights for folder in (directory, partials))
    missing_bytes = sum(file.size_bytes for file in weights) - here_bytes
    require_free(directory, max(0, missing_bytes))
    _download(repo, commit, weights, directory, progress)
    shutil.rmtree(directory / _PARTIAL_DIRECTORY, ignore_errors=True)


def _refuse_unsuitable(repo: str, listed: dict[str, RemoteFile]) -> None:
    if CONFIG_FILE not in listed:
        raise ModelInvalid(f"{repo} has no {CONFIG_FILE}", "name a repository that holds a GLM checkpoint")
    if not any(name.endswith(".safetensors") for name in listed):
        kept = next((name for name in sorted(listed) if name.endswith(_PICKLED)), None)
        what = f"keeps its weights as pickle ({kept}), which can run code when it is read" if kept else "has no weights"
        raise ModelInvalid(f"{repo} has no safetensors file: it {what}", _CONVERTED)
    if TOKENIZER_FILE not in listed:
        raise ModelInvalid(f"{repo} has no {TOKENIZER_FILE}", _CONVERTED)


def _weights(repo: str, listed: dict[str, RemoteFile], directory: Path) -> list[RemoteFile]:
    names = [name for name in listed if name.endswith(".safetensors")]
    if INDEX_FILE in listed:
        index = (directory / INDEX_FILE).read_bytes()
        names = [name for name in names if f'"{name}"'.encode() in index]
    elif SINGLE_FILE in names:
        names = [SINGLE_FILE]
    elif len(names) > 1:
        raise ModelInvalid(f"{repo} has several safetensors files but no {INDEX_FILE}", _CONVERTED)
    return [listed[name] for name in names]


def _list(repo: str, commit: str) -> dict[str, RemoteFile]:
    """Files of the top folder by name."""
    found: dict[str, RemoteFile] = {}
    for count, entry in enumerate(_api().list_repo_tree(repo, revision=commit)):
        if count >= _MAX_LISTED:
            raise ModelInvalid(f"{repo} lists more than {_MAX_LISTED} files", _CONVERTED)
        if hasattr(entry, "blob_id") and "/" not in entry.path:  # a file, not a folder
            sha256 = entry.lfs.sha256 if entry.lfs else None
            found[entry.path] = RemoteFile(entry.path, int(entry.size), sha256, entry.blob_id)
    return found


def _download(repo: str, commit: str, files: list[RemoteFile], directory: Path, progress: Progress) -> None:
    from huggingface_hub import hf_hub_url

    partials = directory / _PARTIAL_DIRECTORY
    partials.mkdir(exist_ok=True)
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:
        if not (directory / file.name).is_file():  # it was checked before it got this name
            url = hf_hub_url(repo, file.name, revision=commit)
            with _hub_errors(repo, commit):
                for now in _receive(url, partials / file.name, file):
                    progress("downloading", done + now, total)
            _verify(partials / file.name, file)
            (partials / file.name).replace(directory / file.name)
        done += file.size_bytes
        progress("downloading", done, total)


def _receive(url: str, partial: Path, file: RemoteFile) -> Iterator[int]:
    """Bring ``partial`` to its full length, going on where it stopped, through a few lost connections.

    Yields its length after every block.
    """
    failures = 0
    while (have := _size_bytes(partial)) < file.size_bytes or not partial.exists():
        try:
            for now in _received(url, partial, have, file.size_bytes):
                yield now
                failures = 0
        except Exception as error:
            if not _is_transport_error(error) or failures >= _RETRIES:
                raise
        if _size_bytes(partial) < file.size_bytes:
            failures += 1
            if failures > _RETRIES:
                raise LinkError(f"the hub ends {file.name} before its end", "pull again later")
            time.sleep(_RETRY_PAUSE_S)


def _received(url: str, partial: Path, have: int, size_bytes: int) -> Iterator[int]:
    """One request of ``_receive``, from byte ``have`` on."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = build_hf_headers(library_name="splitglm") | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        going_on = response.status_code == 206
        have = have if going_on else 0
        with partial.open("ab" if going_on else "wb") as out:
            for block in response.iter_bytes(_BLOCK_BYTES):
                have += len(block)
                if have > size_bytes:
                    raise ModelInvalid(f"{partial.name} is longer than the hub lists it", "pull again")
                out.write(block)
                yield have


def _verify(path: Path, file: RemoteFile) -> None:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    if digest.hexdigest() != (file.sha256 or file.blob_sha1):
        raise ModelInvalid(f"{file.name} does not have the hash that the hub lists for it", "pull again")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cached(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        at = f" at revision {revision}" if revision else ""
        raise ModelNotFound(
            f"{repo}{at} is not in the hub client's cache", "pull it without the offline switch"
        ) from None


def _copy_cached(snapshot: Path, directory: Path, progress: Progress) -> None:
    names = [name for name in _SMALL_FILES if (snapshot / name).exists()]
    paths = [snapshot / name for name in names] + list(find_tensor_files(snapshot))
    total, done = sum(path.stat().st_size for path in paths), 0
    require_free(directory, total)
    for path in paths:
        shutil.copyfile(path, directory / path.name)
        done += path.stat().st_size
        progress("copying", done, total)


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DeviceError("huggingface_hub is not installed", "pip install 'splitglm[model]'") from None
    return HfApi(library_name="splitglm")


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub client raises into one line with the next thing to try."""
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise ModelNotFound(
            f"{repo} asks for its terms to be accepted first", "accept them on its page and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"the hub has no repository {repo}", "check the name; a private one needs HF_TOKEN"
        ) from None
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _unreachable(repo, error) from None
        raise ModelNotFound(f"{repo} has no such file or revision{at}", "check the revision") from None
    except errors.OfflineModeIsEnabled:
        raise LinkError(
            f"{repo} cannot be fetched: HF_HUB_OFFLINE is set", "unset it, or pull with --offline"
        ) from None
    except errors.HfHubHTTPError as error:
        raise LinkError(f"the hub answered {error.response.status_code} for {repo}", "try again later") from None
    except Exception as error:
        if _is_transport_error(error):
            raise _unreachable(repo, error) from None
        raise


def _unreachable(repo: str, error: Exception) -> LinkError:
    where = os.environ.get("HF_ENDPOINT", "the hub")
    cause = error.__cause__ or error
    return LinkError(
        f"{repo} cannot be fetched from {where}: {type(cause).__name__}",
        "check the connection, HF_ENDPOINT and proxies; pull again to go on where it stopped",
    )


def _is_transport_error(error: Exception) -> bool:
    # The hub client's transport is httpx in some releases and httpx2 in others.
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
