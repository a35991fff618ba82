#!/usr/bin/env bash
# Builds a release from the tag that HEAD carries: wheel and sdist in dist/, and the image if docker or buildah is here
# and --no-image is not given.
# Fails before it builds anything if tag, versions and changelog disagree, or if the tree has changes.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
fail() { echo "release: $*" >&2; exit 1; }

tag=$(git describe --exact-match --tags HEAD 2>/dev/null) || fail "HEAD has no tag: git tag v<version>"
version=${tag#v}
[ -z "$(git status --porcelain)" ] || fail "the tree has uncommitted changes"
grep -q "^version = \"$version\"$" pyproject.toml || fail "pyproject.toml has another version than the tag $tag"
grep -q "^__version__ = \"$version\"$" dispatcher/__init__.py || fail "dispatcher/__init__.py has another version than the tag $tag"
grep -q "^ARG VERSION=$version$" Dockerfile || fail "Dockerfile has another version than the tag $tag"
grep -Eq "^appVersion: \"?$version\"?$" deploy/helm/feedback-dispatcher/Chart.yaml || fail "the chart's appVersion is not $version"
grep -Eq "^## $version - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md || fail "CHANGELOG.md has no dated section: ## $version - YYYY-MM-DD"

rm -rf dist
"$python" -m venv dist/.build
dist/.build/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement deploy/image/build.txt
dist/.build/bin/python -m hatchling build --directory dist
rm -rf dist/.build
revision=$(git rev-parse HEAD)
[ "${1:-}" != --no-image ] || exit 0
for builder in docker buildah; do
  if command -v "$builder" >/dev/null && "$builder" info >/dev/null 2>&1; then
    "$builder" build --build-arg "REVISION=$revision" --tag "feedback-dispatcher:$version" .
    break
  fi
done
ls -l dist
