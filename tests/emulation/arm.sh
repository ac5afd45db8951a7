#!/bin/sh
# Test the NEON kernels on an x86-64 machine: cross-compile the compiled module and compare it with the reference under QEMU.
#
#     sh tests/emulation/arm.sh [FOLDER] [pytest options]     (make test-arm)
#
# Needs the Debian packages g++-aarch64-linux-gnu and qemu-user-static. FOLDER (build/arm) keeps an arm64 Python with its packages for the
# next run. VENV is the environment that holds cmake, ninja and nanobind.
set -eu
folder=$(realpath -m "${1:-build/arm}")
[ $# -eq 0 ] || shift
bin=$(realpath "${VENV:-.venv}")/bin
root=$folder/root
for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v $tool > /dev/null || { echo "error: $tool is missing; apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2; exit 1; }
done

# An arm64 Python: packages of Debian, unpacked but not installed. The state of apt is a folder of its own.
if [ ! -e "$root/.complete" ]; then
  mkdir -p "$folder/apt/lists" "$folder/apt/cache/archives/partial" "$root"
  : > "$folder/apt/status"
  arm_apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false -o Debug::NoLocking=true \
      -o Dir::State::Lists="$folder/apt/lists" -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" "$@"
  }
  arm_apt update
  arm_apt install -y --download-only python3.11 libpython3.11-dev libstdc++6 > /dev/null
  for package in "$folder"/apt/cache/archives/*.deb; do dpkg -x "$package" "$root"; done
  "$bin/pip" --disable-pip-version-check -qq install --target "$folder/packages" --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -c constraints.txt \
    fsspec hypothesis numpy pyarrow pydantic pytest pytest-timeout safetensors threadpoolctl tqdm
  touch "$root/.complete"
fi

"$bin/cmake" -G Ninja -S . -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DPython_EXECUTABLE="$bin/python" \
  -DPython_INCLUDE_DIR="$root/usr/include/python3.11" -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" \
  -DSKBUILD_SOABI=cpython-311-aarch64-linux-gnu
"$bin/cmake" --build "$folder/build"

# max has the dot product; cortex-a72 lacks it and runs the portable kernels.
for cpu in max cortex-a72; do
  echo "processor: $cpu"
  PYTHONPATH=$folder/packages PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1 FEWER_EXAMPLES=6 QEMU_LD_PREFIX=$root \
    qemu-aarch64-static -cpu $cpu "$root/usr/bin/python3.11" -m tests.sanitized \
    "$folder"/build/ray_lir_native*.so -q -p no:cacheprovider --timeout 3600 "$@"
done
