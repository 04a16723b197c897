#!/bin/sh
# Install wanted.txt (the requirements of pyproject.toml) into the given interpreter, at the tested versions of constraints/.
#
#   install_dependencies.sh PYTHON cpu|cuda [TORCH_INDEX]
#
# cpu needs a source of CPU wheels of torch: a TORCH_INDEX, or an index or wheel directory named by pip's own configuration.
# cuda takes the same release from the package index, whose Linux wheel is the CUDA one.
set -eu
python=$1
flavour=$2
torch_index=${3:-}
pins=$(mktemp)

case $flavour in
    cpu) cp constraints/cpu.txt "$pins" ;;
    # `===` compares text, so that a "+cpu" wheel in a local wheel directory cannot win over the plain release.
    cuda) sed -E 's/^torch==/torch===/' constraints/cpu.txt > "$pins" ;;
    *) echo "TORCH is '$flavour'; use TORCH=cpu or TORCH=cuda." >&2; exit 2 ;;
esac

# The same way as `make setup`: nothing is compiled, three packages of pure Python are published as source alone.
install() {
    "$python" -m pip install --only-binary=:all: --no-binary=prefetch-generator,python-baseconv,varint --no-build-isolation \
        ${torch_index:+--extra-index-url "$torch_index"} -c "$pins" "$@"
}
install setuptools
install -r wanted.txt -r constraints/libp2p.txt
install --no-deps libp2p fastecdsa
rm -f "$pins"

"$python" - "$flavour" <<'PYTHON'
import sys

import torch

found = "cuda" if torch.version.cuda else "cpu"
if found != sys.argv[1]:
    sys.exit(f"TORCH={sys.argv[1]} was asked for and the package index served the {found} build; name another index with TORCH_INDEX.")
PYTHON
