"""What a launcher runs, to download: all files as a zip, or their texts."""

import io
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Response

from autofit.export import launch_command
from autofit.export.report import export_from
from autofit.store import Store
from autofit.web.context import Context, Here
from autofit.web.problems import RESPONSES
from autofit.web.questions import answer
from autofit.web.schemas import Chosen, Files, Launcher, Study

router = APIRouter(prefix="/api/studies", tags=["export"], responses=RESPONSES)


@dataclass(frozen=True)
class _Export:
    trial_number: int
    folder: str
    texts: dict[str, str]
    command: str
    warning: str | None


@router.get("/{study}/export", response_model=Files)
def files(study: Study, here: Here, launcher: Launcher = "llamafactory", trial: Chosen = None) -> Response:
    """The texts of the files that a launcher runs, and the command."""
    found = _export(here, study, launcher, trial)
    return answer(
        {
            "trial_number": found.trial_number,
            "launcher": launcher,
            "files": found.texts,
            "command": found.command,
            "warning": found.warning,
        }
    )


@router.get(
    "/{study}/export.zip",
    response_class=Response,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)
def archive(study: Study, here: Here, launcher: Launcher = "llamafactory", trial: Chosen = None) -> Response:
    """The same files in a folder of a zip."""
    found = _export(here, study, launcher, trial)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in found.texts.items():
            packed.writestr(f"{found.folder}/{name}", text)
    return _download(buffer.getvalue(), "application/zip", f"{found.folder}.zip")


@router.get(
    "/{study}/export/train.yaml",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {"schema": {"type": "string"}}}}},
)
def yaml(study: Study, here: Here, trial: Chosen = None) -> Response:
    """LLaMA-Factory's YAML alone."""
    found = _export(here, study, "llamafactory", trial)
    return _download(found.texts["train.yaml"].encode(), "application/yaml", "train.yaml")


def _export(here: Context, study: str, launcher: str, trial: int | None) -> _Export:
    """Renders into a folder of its own, which is gone afterwards."""
    with Store.open(str(here.settings.database), read_only=True) as store:
        record, trials = store.study(study), store.trials(study)
    with tempfile.TemporaryDirectory(prefix="autofit-export-") as made:
        done = export_from(record, trials, trial, launcher, Path(made))
        texts = {file.name: file.read_text(encoding="utf-8") for file in done.files}
    folder = f"{study}-trial-{done.trial_number}"
    chosen = next(each for each in trials if each.trial_number == done.trial_number)
    return _Export(done.trial_number, folder, texts, launch_command(record, chosen, launcher, Path(folder)), done.warning)


def _download(content: bytes, kind: str, name: str) -> Response:
    safe = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in name)
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{safe}"'})
