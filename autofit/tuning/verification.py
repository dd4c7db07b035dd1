"""`autofit verify`: do the conditions under which an export was proved still hold, here and now?"""

import sys
from dataclasses import dataclass
from pathlib import Path

from autofit.config.base import parse, read_yaml
from autofit.config.certificate import CERTIFICATE_FILE, Certificate
from autofit.config.space import DatasetRef
from autofit.errors import AutofitError
from autofit.export.digest import dataset_digest, file_digest
from autofit.launch import gpus
from autofit.launch.environment import probe
from autofit.tuning.plan import HEADROOM
from autofit.units import format_bytes


@dataclass(frozen=True)
class Verdict:
    """What `verify` found, a line each."""

    broken: tuple[str, ...]
    """Why the certificate does not hold."""
    unchecked: tuple[str, ...]
    """What could not be looked at."""

    @property
    def holds(self) -> bool:
        """Whether nothing that could be looked at has changed."""
        return not self.broken


def read_certificate(folder: Path) -> Certificate:
    """The certificate in an exported folder.

    Raises:
        UsageError: there is none, or it is none.
    """
    file = folder / CERTIFICATE_FILE
    return parse(Certificate, read_yaml(file), str(file))


def verify(folder: Path, certificate: Certificate, python: str | None = None, gpu_mem_bytes: int | None = None) -> Verdict:
    """Compares the certificate in `folder` with the files beside it and with this machine; raises nothing.

    `python` is the interpreter of the training environment (None: the trials'); `gpu_mem_bytes` the memory that the run may
    have here, if it is another than the study's.
    """
    finding = _Finding()
    _figures(certificate, finding)
    _files(folder, certificate, finding)
    _dataset(certificate, finding)
    _versions(certificate, python, finding)
    _hardware(certificate, gpu_mem_bytes, finding)
    return Verdict(tuple(finding.broken), tuple(finding.unchecked))


class _Finding:
    def __init__(self) -> None:
        self.broken: list[str] = []
        self.unchecked: list[str] = []


def _figures(certificate: Certificate, finding: _Finding) -> None:
    if certificate.evidence == "predicted":
        finding.broken.append("nothing was measured: the configuration is PREDICTED, it was never run")
    elif certificate.evidence == "failed":
        outcome = certificate.search.outcome if certificate.search else "unknown"
        finding.broken.append(f"the configuration did not run to its end: {outcome}")
    elif certificate.confirm is None:
        finding.unchecked.append("no longer run confirmed this configuration")
    elif certificate.confirm.outcome != "COMPLETED":
        finding.broken.append(f"the longer run that should confirm it ended {certificate.confirm.outcome}")
    peak = certificate.peak_device_bytes
    if peak is not None and peak > certificate.memory_budget_bytes:
        finding.broken.append(
            f"budget: the measured peak {format_bytes(peak)} exceeds the budget {format_bytes(certificate.memory_budget_bytes)}"
        )


def _files(folder: Path, certificate: Certificate, finding: _Finding) -> None:
    for file in certificate.files:
        try:
            if file_digest(folder / file.name) != file.sha256:
                finding.broken.append(f"file: {file.name} is not what was exported")
        except OSError as error:
            finding.broken.append(f"file: {file.name} cannot be read ({error.strerror})")


def _dataset(certificate: Certificate, finding: _Finding) -> None:
    then = certificate.dataset
    if then.sha256 is None:
        finding.unchecked.append(f"data set: {then.reason}")
        return
    now = dataset_digest(DatasetRef(name=then.name, dir=then.dir), then.media_dir)
    if then.unread:
        finding.unchecked.append(f"data set: images named in {', '.join(then.unread)}; only its own bytes were compared")
    if now.sha256 is None:
        finding.broken.append(f"data set: {now.reason}")
    elif now.sha256 != then.sha256:
        finding.broken.append(f"data set: {then.name} in {then.dir} has changed")


def _versions(certificate: Certificate, python: str | None, finding: _Finding) -> None:
    if not certificate.versions:
        finding.unchecked.append("versions: none were recorded")
        return
    interpreter = python or certificate.python or sys.executable
    try:
        here = probe(interpreter).versions
    except AutofitError as error:
        finding.broken.append(f"versions: {error}")
        return
    for name, version in certificate.versions.items():
        if name == "python" and here.get(name, "").split(".")[:2] == version.split(".")[:2]:
            continue  # a patch release of the interpreter
        if here.get(name) != version:
            finding.broken.append(f"versions: {name} is {here.get(name, 'not installed')} here, was {version}")


def _hardware(certificate: Certificate, gpu_mem_bytes: int | None, finding: _Finding) -> None:
    then, count = certificate.hardware, len(certificate.hardware.devices)
    if then.device == "none":
        finding.unchecked.append("hardware: the figures were predicted, for devices that were not there")
        return
    try:
        now = gpus.detect(then.device, count)
    except AutofitError as error:
        finding.broken.append(f"hardware: {error}; the trials ran on {count} x {then.devices[0].name}")
        return
    for before, after in zip(then.devices, now.devices, strict=True):
        if before.name != after.name:
            finding.broken.append(f"hardware: device {after.index} is {after.name}, was {before.name}")
            break
    memory = min(device.memory_bytes for device in now.devices) // (count if then.device == "cpu" else 1)
    budget = int(min(gpu_mem_bytes or certificate.gpu_mem_bytes, memory) * (1 - HEADROOM))
    if budget < certificate.memory_budget_bytes:
        finding.broken.append(
            f"budget: {format_bytes(budget)} a rank here, the proof is for {format_bytes(certificate.memory_budget_bytes)}"
        )
