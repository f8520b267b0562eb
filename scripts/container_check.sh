#!/bin/sh
# The Dockerfile's steps without Docker: scripts/container_check.sh FOLDER [PYTHON]
# Builds the image's /app under FOLDER, then serves from it as user 10001 on a read-only file system and asks once.
# Needs root, util-linux (unshare, setpriv) and curl; PYTHON must be readable for other users.
set -eu
folder=$1
python=${2:-/usr/bin/python3}
here=$(cd "$(dirname "$0")/.." && pwd)
port=${PORT:-8899}
mkdir -p "$folder"
cp -r "$here/src" "$here/pyproject.toml" "$here/README.md" "$here/LICENSE" "$folder"
cd "$folder"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
"$python" -m venv app && app/bin/pip install -q -r "$here/requirements/serve.txt"
"$python" -m venv tools && tools/bin/pip install -q "hatchling>=1.27,<2"
tools/bin/python -m hatchling build -t wheel -d wheels
app/bin/pip install -q --no-deps wheels/*.whl
app/bin/python -m compileall -q app/lib
rm -f app/lib/python3*/site-packages/openvino/libs/libopenvino_intel_[gn]pu_plugin.so
app/bin/pip uninstall -y -q pip
if app/bin/python -c "import tensorflow" 2>/dev/null; then
    echo "TensorFlow is in the image." >&2
    exit 1
fi
chmod -R a+rX "$folder"
cat >serve.sh <<EOF
mount --make-rprivate / && mount -o remount,ro,bind /
exec setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs \
    env -i HOME=/nonexistent PATH=/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 \
    $folder/app/bin/python -m dermlens serve --host 0.0.0.0 --port $port --drain 0
EOF
unshare -m sh serve.sh 2>serve.log &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 60); do
    curl -sf "http://127.0.0.1:$port/readyz" >/dev/null && break
    sleep 1
done
curl -sf -F "image=@$here/examples/images/MEL_ISIC_0000029.jpg" "http://127.0.0.1:$port/api/v1/predictions" || {
    cat serve.log >&2
    exit 1
}
echo
du -sh app | cut -f1
kill -TERM $server
wait $server
