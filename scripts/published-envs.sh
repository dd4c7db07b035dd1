#!/bin/sh
# Environments for benchmarks/published_accuracy.py: one for each transformers that a published row was measured with, on top of
# the torch of an environment that is there. Prints the arguments that the benchmark takes.
#
#     scripts/published-envs.sh FOLDER [PYTHON of the environment with torch]
set -eu
folder=${1:?usage: published-envs.sh FOLDER [PYTHON]}
base=${2:-.venv/bin/python}
packages=$("$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# transformers=peft, as the rows name them (a development version of PEFT is replaced by the release before it)
for pair in 4.39.3=0.11.1 4.43.3=0.12.0 4.44.2=0.12.0 4.45.0=0.12.0 4.45.2=0.13.2 4.48.1=0.13.2 4.52.4=0.15.2 4.57.1=0.18.0 \
    5.13.1=0.19.1; do
    version=${pair%=*}
    place=$folder/$version
    if [ ! -e "$place/.ready" ]; then
        "$base" -m venv "$place"
        # behind the environment's own packages, so that what is installed here comes first
        echo "$packages" >"$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-from-there.pth"
        "$place/bin/pip" install -q --disable-pip-version-check "transformers==$version" "peft==${pair#*=}" 1>&2
        touch "$place/.ready"
    fi
    printf -- '--python %s=%s/bin/python ' "$version" "$place"
done
echo
