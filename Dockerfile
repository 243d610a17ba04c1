# The service's image; --target cli makes that of the guestflow command. `make image` gives them their stamps; docs/operate/image.md says what was tried.
# An ARG holds for its own stage, and stands on a line of its own: buildah 1.28 reads only the first of a line.

# The Go and the CA certificates that ship. How to move it: docs/operate/image.md.
ARG GO_IMAGE=docker.io/library/golang:1.26.8@sha256:6c2a5538f964f1c82f97ad14988bf05de100d922d159d0e398b54c7b0ca0c6c9

# Runs on the builder's own architecture and compiles for the other: nothing is emulated.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS source
ENV GOTOOLCHAIN=local
COPY LICENSE NOTICE /image/
RUN mkdir -p /image/etc/ssl/certs && \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ && \
    echo 'guestflow:x:65532:65532:guestflow:/:/sbin/nologin' >/image/etc/passwd && \
    echo 'guestflow:x:65532:' >/image/etc/group && \
    chmod -R u=rwX,go=rX /image
WORKDIR /src
COPY . .

FROM source AS service-build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH make consumer "VERSION=$VERSION" "COMMIT=$COMMIT"

FROM source AS cli-build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH make guestflow "VERSION=$VERSION" "COMMIT=$COMMIT"

# What both have, but for the binary.
FROM scratch AS base
ARG VERSION=dev
ARG COMMIT=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.source="https://github.com/guestflow/guestflow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.created="$CREATED"
COPY --from=source /image/ /
USER 65532:65532

FROM base AS cli
LABEL org.opencontainers.image.title="guestflow-cli" \
      org.opencontainers.image.description="Sends requests to guestflow, shows what becomes of them, finds out what is wrong"
COPY --from=cli-build /src/bin/guestflow /guestflow
ENTRYPOINT ["/guestflow"]

# The last stage is what a build without --target makes.
FROM base AS service
LABEL org.opencontainers.image.title="guestflow" \
      org.opencontainers.image.description="Customizes running vSphere guests, by way of NATS JetStream"
COPY --from=service-build /src/bin/consumer /consumer
EXPOSE 8080
ENTRYPOINT ["/consumer"]
