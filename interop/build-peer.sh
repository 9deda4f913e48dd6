#!/usr/bin/env bash
# Builds interop/peer (OpenMLS and mls-rs) once for each state of its sources and prints the program's path;
# "build-peer.sh bench" does so with interop/bench, to which interop/peer/src/peers belongs as well. Programs are kept in
# ~/.cache/matrix-mls/mls-peer and mls-bench, or under MLS_CACHE.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-peer}
cache=${MLS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/matrix-mls}/mls-$what
say() { echo "interop: $*" >&2; }

shared=
[ "$what" = peer ] || shared=../peer/src/peers
sum=$(cd "$here/$what" && cat Cargo.toml $(find src $shared -name '*.rs' | LC_ALL=C sort) | sha256sum | cut -c1-16)
program=$cache/bin/mls-$what-$sum
if [ ! -x "$program" ]; then
	if ! command -v cargo >/dev/null; then
		say "no Rust toolchain on this machine, and interop/$what runs OpenMLS and mls-rs"
		say "hint: install rustc and cargo 1.91 or newer (Debian 12's own are too old for OpenMLS), or use make test-fast"
		exit 1
	fi
	have=$(rustc --version | cut -d' ' -f2)
	if [ "$(printf '%s\n' 1.91.0 "$have" | sort -V | head -n 1)" != 1.91.0 ]; then
		say "rustc $have is too old: OpenMLS 0.9.2 needs 1.91"
		say "hint: rustup update, or use make test-fast"
		exit 1
	fi
	missing=()
	command -v cmake >/dev/null || missing+=(cmake)
	command -v cc >/dev/null || missing+=(gcc libc6-dev)
	if [ ${#missing[@]} -gt 0 ]; then
		if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
			say "missing on this machine: ${missing[*]}"
			say "hint: install them (Debian: apt-get install ${missing[*]}) and run this again"
			exit 1
		fi
		say "installing ${missing[*]}"
		apt-get update >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2
	fi
	mkdir -p "$cache/bin"
	exec 9>"$cache/build.lock"
	flock 9
	if [ ! -x "$program" ]; then
		say "building OpenMLS and mls-rs (about 3 minutes the first time)"
		began=$SECONDS
		# The target directory is outside the source tree, and so is the lock file: a copy is built.
		rm -rf "$cache/source"
		mkdir -p "$cache/source/$what" "$cache/source/peer/src"
		cp -r "$here/$what/Cargo.toml" "$here/$what/src" "$cache/source/$what/"
		[ -z "$shared" ] || cp -r "$here/peer/src/peers" "$cache/source/peer/src/"
		[ ! -f "$cache/Cargo.lock" ] || cp "$cache/Cargo.lock" "$cache/source/$what/"
		(cd "$cache/source/$what" && cargo build --release --target-dir "$cache/target" >&2)
		cp "$cache/source/$what/Cargo.lock" "$cache/"
		cp "$cache/target/release/mls-$what" "$program.new"
		mv "$program.new" "$program"
		say "built in $((SECONDS - began)) s"
	fi
fi
echo "$program"
