# Builds adit from source. Not published and not tested yet: the image, its examples and its tests are still to come.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM ${RUN_IMAGE}
COPY --from=build /src/target/release/adit /usr/local/bin/adit
ENTRYPOINT ["/usr/local/bin/adit"]
