# The dispatcher's image: an interpreter, the locked dependencies and the program, for uid 65532 on a read-only root.
#
#   docker build -t feedback-dispatcher .
#   docker build --build-arg BASE=python:3.11-slim@sha256:… --build-arg REVISION=$(git rev-parse HEAD) .
#   docker build --build-arg LOCK=image-msk-iam .      # with the signer for Amazon MSK IAM (35 MB)
#
#   docker build --build-arg COMPILE=0 .               # interpreted, no C compiler needed
#
# BASE must have Python 3.11 or newer; pin it by digest for a release. Both stages use the same one, so that the
# environment's interpreter has the same path.
ARG BASE=python:3.14-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG LOCK=image
ARG COMPILE=1
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv --without-pip /opt/dispatcher \
    && python3 -m venv /opt/build
COPY requirements/image.txt requirements/image-msk-iam.txt requirements/
# Only wheels: nothing is compiled, and every one has its hash in the file.
RUN /opt/build/bin/pip --python /opt/dispatcher/bin/python install \
        --only-binary :all: --no-compile --require-hashes --requirement "requirements/${LOCK}.txt"
# mypyc compiles the hot modules; it reads the annotations of the dependencies, too.
COPY deploy/image/build.txt build.txt
# hadolint ignore=DL3008
RUN if [ "${COMPILE}" != 0 ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev libpython3-dev \
        && rm -rf /var/lib/apt/lists/*; fi
RUN /opt/build/bin/pip install --only-binary :all: --require-hashes --requirement build.txt \
        --requirement "requirements/${LOCK}.txt"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY dispatcher dispatcher
RUN DISPATCHER_COMPILE="${COMPILE}" /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/dispatcher/bin/python install --no-deps --no-index --no-compile /wheels/*.whl \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/dispatcher/lib
# What is in the image, with hashes and licences: /opt/dispatcher/sbom.cdx.json
COPY deploy/image/sbom.py sbom.py
RUN /opt/build/bin/python sbom.py --lock "requirements/${LOCK}.txt" --environment /opt/dispatcher --system / \
        --out /opt/dispatcher/sbom.cdx.json

# hadolint ignore=DL3006
FROM ${BASE}
ARG REVISION=unknown
ARG VERSION=0.2.0
LABEL org.opencontainers.image.title="feedback-dispatcher" \
      org.opencontainers.image.description="Turns a Kafka stream of message-delivery events into webhooks that can be relied on." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# What a running dispatcher does not need: the installers of Python packages.
RUN rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
        /usr/local/lib/python3*/site-packages/wheel* /usr/local/lib/python3*/ensurepip \
        /usr/lib/python3*/ensurepip /usr/share/python-wheels /usr/local/bin/pip* /usr/local/bin/wheel* /root/.cache
# The official images have no bytecode of the standard library, and the root is read-only: each start would compile it
# (half a second; 12 MB).
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/((site|dist)-packages|idlelib|lib2to3|tests?|tkinter|turtledemo)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["dispatcher"]
CMD ["run", "--config=/etc/dispatcher/dispatcher.yaml"]
