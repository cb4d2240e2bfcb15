"""Fetches a GLM checkpoint from a model hub through ``huggingface_hub``, pinned to a commit and checked by hash.

The hub client brings what users have set up: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, proxies. It checks
sizes only, so every file is hashed here against what the repository's listing at that commit says.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
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
_CLIENT_DIRECTORY: Final = ".cache"  # where the hub client keeps its notes and unfinished files


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
    missing_bytes = sum(file.size_bytes - _staged_bytes(directory, file.name) for file in weights)
    require_free(directory, max(0, missing_bytes))
    _download(repo, commit, weights, directory, progress)
    shutil.rmtree(directory / _CLIENT_DIRECTORY, ignore_errors=True)


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
    from huggingface_hub import hf_hub_download

    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:
        bar = _bar_class(lambda now, before=done: progress("downloading", before + now, total))
        with _hub_errors(repo, commit):
            hf_hub_download(repo, file.name, revision=commit, local_dir=directory, tqdm_class=bar)
        _verify(directory / file.name, file)
        done += file.size_bytes
        progress("downloading", done, total)


def _verify(path: Path, file: RemoteFile) -> None:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    if digest.hexdigest() != (file.sha256 or file.blob_sha1):
        raise ModelInvalid(f"{file.name} does not have the hash that the hub lists for it", "pull again")


def _staged_bytes(directory: Path, name: str) -> int:
    path = directory / name
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
        # The client's transport is httpx in some releases and httpx2 in others; sizes that differ are a bare OSError.
        if type(error).__module__.startswith("httpx") or (isinstance(error, OSError) and error.errno is None):
            raise _unreachable(repo, error) from None
        raise


def _unreachable(repo: str, error: Exception) -> LinkError:
    where = os.environ.get("HF_ENDPOINT", "the hub")
    cause = error.__cause__ or error
    return LinkError(
        f"{repo} cannot be fetched from {where}: {type(cause).__name__}",
        "check the connection, HF_ENDPOINT and proxies; pull again to go on where it stopped",
    )


def _bar_class(report: Any) -> Any:
    """A progress bar for the hub client that draws nothing and tells ``report`` how many bytes of a file there are."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"file": io.StringIO(), "mininterval": 0.0}))
            self.display()

        def display(self, *args: Any, **options: Any) -> bool:
            report(int(self.n))
            return True

        def update(self, n: float | None = 1) -> Any:
            updated = super().update(n)
            report(int(self.n))
            return updated

    return Bar
