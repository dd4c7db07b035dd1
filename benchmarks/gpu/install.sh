#!/bin/sh
# Makes .venv beside this script out of the Python that has torch and of wheels/. Needs no network.
#   sh install.sh [PYTHON]
set -eu
cd "$(dirname "$0")"
PYTHON=${1:-python3}
"$PYTHON" -c 'import sys
if sys.version_info[:2] != (3, 12):
    sys.exit("install.sh: the wheels are for Python 3.12, this is " + sys.version.split()[0] + "; name another: sh install.sh PYTHON")'
"$PYTHON" -c 'from importlib.util import find_spec
import sys
if lacking := [name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None]:
    sys.exit("install.sh: this Python lacks " + ", ".join(lacking) + "; name another: sh install.sh PYTHON")'
rm -rf .venv
"$PYTHON" -m venv --without-pip .venv
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" wheels/*.whl
# This folder, and behind the wheels what PYTHON itself has (it may be a venv, which --system-site-packages would pass over).
pwd > "$site/autofit_here.pth"
"$PYTHON" -c 'import site, sysconfig
for folder in dict.fromkeys([*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
    print(f"import site; site.addsitedir({folder!r})")' > "$site/autofit_stack.pth"
.venv/bin/python -m autofit.cli --version
.venv/bin/python -m autofit.cli doctor
echo "next: make gpu-evidence PART=accuracy, or without make: .venv/bin/python -m benchmarks.gpu.evidence --part accuracy"
