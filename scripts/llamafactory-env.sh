#!/usr/bin/env bash
# scripts/llamafactory-env.sh VENV_DIR - LLaMA-Factory 0.9.5 and DeepSpeed for machines without a GPU: what the exports are tested in.
#
# The versions are those of llamafactory-constraints.txt. Needs 1.8 GB and a minute or two; running it again changes nothing.
# $PYTHON (default python3) makes the environment; the training commands find `torchrun` in VENV_DIR/bin, so put it on PATH.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: scripts/llamafactory-env.sh VENV_DIR" >&2
  exit 2
fi
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
constraints=$here/llamafactory-constraints.txt
pinned() { grep "^$1==" "$constraints"; }

test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts)

# torch first: any other package would pull in the CUDA build of the day, several GB of it
"${pip[@]}" "$(pinned torch)"
# These name CUDA packages, or web and hub packages that training does not need, as their dependencies
"${pip[@]}" --no-deps "$(pinned torchvision)" "$(pinned torchaudio)" "$(pinned torchdata)" "$(pinned llamafactory)"
"${pip[@]}" --constraint "$constraints" transformers accelerate peft trl datasets deepspeed ninja \
  numpy scipy pillow av omegaconf einops pyyaml sentencepiece tiktoken protobuf fire psutil

# CUDA-linked torchvision and torchaudio do not load beside a CPU torch until these repairs are there, in every child process
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$here/llamafactory_cpu_shims.py" "$site/"
echo 'import llamafactory_cpu_shims' > "$site/llamafactory_cpu_shims.pth"

"$venv/bin/llamafactory-cli" version
