# pqtun on Debian 13. `make test` does not build this: that takes a container engine and the base image.
#
#   docker build -t pqtun .
#   docker run --network host --cap-add NET_ADMIN --device /dev/net/tun -v /etc/pqtun:/etc/pqtun pqtun keygen
#   docker run --network host --cap-add NET_ADMIN --device /dev/net/tun -v /etc/pqtun:/etc/pqtun \
#       -v /var/lib/pqtun:/var/lib/pqtun pqtun server
FROM debian:13-slim

COPY LICENSE README.md pyproject.toml requirements.lock requirements-build.lock /src/
COPY scripts /src/scripts
COPY misc /src/misc
COPY pqtun /src/pqtun
RUN apt-get update -qq && /src/scripts/install && rm -rf /src /var/lib/apt/lists/* /root/.cache

ENTRYPOINT ["/usr/local/bin/pqtun"]
CMD ["server"]
