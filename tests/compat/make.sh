#!/bin/sh
# Make the store of a released format: tests/compat/README.md. Usage: tests/compat/make.sh COMMIT FORMAT
set -eu
commit=$1 target=$(cd "$(dirname "$0")" && pwd)/$2
here=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
work=/tmp/hardcase-compat # the record of a run names its store
rm -rf "$work" && mkdir -p "$work/home" "$target"
git clone --quiet "$here" "$work/code"
git -C "$work/code" checkout --quiet "$commit"
make --silent -C "$work/code" .venv/.ready
export HARDCASE_HOME="$work/home"
cd "$work"
run() {
	"$work/code/.venv/bin/hardcase" run --profile smoke --source 'procedural://?samples=16&seed=7' \
		--set sft.steps=2 --set sft.warm_up.steps=1 --set sft.reading.steps=1 --set mine.k=2 --set grpo.steps=2 \
		--set model.tiny.text_hidden=16 --set model.tiny.vision_hidden=16 \
		--set validate.min_train_rows=1 --set validate.min_eval_rows=1 --set validate.min_letter_share=0 \
		--set validate.max_letter_share=1 --set validate.min_aspect_share=0 --set validate.max_aspect_share=1 \
		--set validate.max_none_share=1 "$@"
}
# Without a floor, which commits before it do not know: they refuse the settings.
run --set register.min_rows=1 --set register.min_overall=0 --set register.min_valid=0 || run --set register.min_rows=1
# The gate rejects the same model under another name, with exit code 3. A second version of one model would add the
# drift page of a library, a megabyte of its code.
run --set register.min_rows=100 --set register.name=strict-screener && exit 1 || test $? -eq 3
tar --create --gzip --sort=name --owner=0 --group=0 --numeric-owner \
	--file "$target/store.tar.gz" --directory "$HARDCASE_HOME" store
cp "$HARDCASE_HOME/keys/signing.pub" "$target/signing.pub" # the private key goes with $work
rm -rf "$work"
