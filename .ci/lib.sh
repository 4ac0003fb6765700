# Shared by .ci/run and the scripts under .ci/steps: tools by package name, a Python environment, the binary under test.
# Sourced, never run. A missing tool that cannot be had is a failure, never a skip.

if [ "$(id -u)" = 0 ]; then as_root=(); else as_root=(sudo -n); fi

# package_list: Debian's, fetched once a run.
package_list() {
    [ -e "$HERDGATE_CI_DIR/apt-updated" ] && return 0
    "${as_root[@]}" apt-get update -qq
    touch "$HERDGATE_CI_DIR/apt-updated"
}

# install_package PACKAGE: from Debian's packages.
install_package() {
    package_list
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

# need COMMAND PACKAGE: installs Debian's PACKAGE unless COMMAND is there.
need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    echo "installing $2 (for $1)"
    install_package "$2"
    command -v "$1" >/dev/null 2>&1 || { echo "$1 is still missing after installing $2" >&2; return 1; }
}

# need_only COMMAND PACKAGE: unpacks Debian's PACKAGE alone unless COMMAND is there: without the service that it belongs
# to and all that this one needs.
need_only() {
    command -v "$1" >/dev/null 2>&1 && return 0
    echo "unpacking $2 (for $1)"
    package_list
    (cd "$HERDGATE_CI_DIR" && apt-get download -qq "$2" && dpkg-deb -x "$2"_*.deb "$2" && rm "$2"_*.deb)
    PATH="$HERDGATE_CI_DIR/$2/usr/bin:$PATH"
    command -v "$1" >/dev/null 2>&1 || { echo "$1 is not in $2" >&2; return 1; }
}

# python_with PACKAGE...: a virtual environment with these packages; sets PYTHON.
python_with() {
    need python3 python3
    local venv="$HERDGATE_CI_DIR/venv"
    if [ ! -x "$venv/bin/python" ]; then
        python3 -m venv "$venv" >/dev/null 2>&1 || {
            rm -rf "$venv"
            install_package python3-venv
            python3 -m venv "$venv"
        }
    fi
    PYTHON="$venv/bin/python"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"
}

# source_of PACKAGE FOLDER: unpacks the source package of the version of PACKAGE that python_with installed.
source_of() {
    local version
    version=$("$PYTHON" -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$1")
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary "$1" --dest "$2" "$1==$version"
    tar -xzf "$2/${1//-/_}-$version.tar.gz" -C "$2"
}

# javascript_with PACKAGE...: a folder with these packages; sets JAVASCRIPT.
javascript_with() {
    need node nodejs
    need npm npm
    JAVASCRIPT="$HERDGATE_CI_DIR/javascript"
    mkdir -p "$JAVASCRIPT"
    # No script of a package is run, and nothing is looked up that was not asked for.
    npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix "$JAVASCRIPT" "$@" >/dev/null
}
