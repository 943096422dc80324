# pqtun on Debian 13. `make test` does not build this: that takes a container engine and the base image.
#
#   docker build -t pqtun .
#   docker run --network host --cap-add NET_ADMIN --device /dev/net/tun -v /etc/pqtun:/etc/pqtun pqtun keygen
#   docker run --network host --cap-add NET_ADMIN --device /dev/net/tun --ulimit memlock=536870912 \
#       -v /etc/pqtun:/etc/pqtun -v /var/lib/pqtun:/var/lib/pqtun pqtun server

# The compilers stay behind in this stage.
FROM debian:13-slim AS build
COPY LICENSE README.md pyproject.toml setup.py requirements.lock requirements-build.lock /src/
COPY native /src/native
COPY scripts /src/scripts
COPY misc /src/misc
COPY pqtun /src/pqtun
RUN apt-get update -qq && /src/scripts/install-deps run && PQTUN_NATIVE=yes DESTDIR=/out /src/scripts/install

FROM debian:13-slim
COPY scripts/install-deps scripts/fetch-debs /src/scripts/
RUN apt-get update -qq && PQTUN_NATIVE=no /src/scripts/install-deps run \
    && useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pqtun \
    && install -d -m 700 -o pqtun -g pqtun /var/lib/pqtun \
    && rm -rf /src /var/lib/apt/lists/*
COPY --from=build /out /

ENTRYPOINT ["/usr/local/bin/pqtun"]
CMD ["server"]
