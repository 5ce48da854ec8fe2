# The image of adit: adit, nft, and the libraries that they load; nothing else, no shell. docs/containers.md says how it is run.
#
#   docker build --tag adit .
#
# Needs BuildKit. There is no `# syntax=` line on purpose: nothing is pulled but the two base images, and both can be replaced.
# Nothing here names an architecture.

# Where adit is compiled: Rust 1.95 and gcc. Its glibc must not be newer than that of the other.
ARG BUILD_IMAGE=rust:1.95-bookworm
# Where nft and all libraries come from: Debian, or what has apt and dpkg like it.
ARG DEBIAN_IMAGE=debian:bookworm-slim


FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# `release` takes twice as long after each change and saves processor time at run time: docs/containers.md.
ARG PROFILE=image
ENV CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols

# Writes the list of crates into the binary, where scanners look for it (section .dep-v0).
ARG CARGO_AUDITABLE=0.7.7
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_TARGET_DIR=/tmp/cargo-auditable \
    cargo install --quiet --locked --root /usr/local "cargo-auditable@${CARGO_AUDITABLE}"

# All dependencies, compiled with an empty adit: this layer stays until Cargo.toml or Cargo.lock change.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    mkdir src benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && for bench in $(sed -n '/^\[\[bench\]\]/,/^name/s/^name *= *"\([^"]*\)".*/\1/p' Cargo.toml); do \
        touch "benches/$bench.rs"; \
    done \
    && cargo auditable build --profile "$PROFILE" --locked --bin adit

COPY config/adit.yaml config/adit.yaml
COPY config/demo config/demo
COPY src src
# Cargo goes by time stamps, and those of the sources may be older than those of the empty ones.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    touch src/lib.rs src/main.rs \
    && cargo auditable build --profile "$PROFILE" --locked --bin adit \
    && cp "target/$PROFILE/adit" /adit


FROM ${DEBIAN_IMAGE} AS files
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends nftables >/dev/null
COPY config/image/rootfs /usr/local/bin/
COPY --from=build /adit /usr/local/bin/adit
COPY LICENSE /usr/share/doc/adit/copyright
RUN rootfs /rootfs /usr/sbin/nft /usr/local/bin/adit


FROM scratch
# Two layers: what Debian brings changes seldom and is shared by all builds of adit.
COPY --from=files /rootfs/ /
COPY --from=build /adit /usr/local/bin/adit

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="adit" \
      org.opencontainers.image.description="L4 proxy daemon: captures, resolves, authorizes, carries and accounts for TCP connections" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# By number, so that Kubernetes can see that it is not root. `adit redirect` wants 0 instead, and CAP_NET_ADMIN.
USER 65532:65532
WORKDIR /
# Capture, tunnels, metrics, probes. SOCKS5 and admin are for loopback only.
EXPOSE 15001 15006 15008 15020 15021
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["/usr/local/bin/adit", "healthcheck", "--timeout", "2s"]
ENTRYPOINT ["/usr/local/bin/adit"]
CMD ["run", "--config", "/etc/adit/adit.yaml"]
