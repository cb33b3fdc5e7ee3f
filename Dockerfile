# Three images of one source:
#
#   docker build --target server  -t vitrine-server .
#   docker build --target trainer -t vitrine-trainer .
#
#   docker run -p 8500:8500 -p 9500:9500 -v models:/var/lib/vitrine/models \
#       vitrine-server
#   docker run --rm -v models:/var/lib/vitrine/models -v "$PWD":/data:ro \
#       vitrine-trainer fit --out /var/lib/vitrine/models ...
#
# With tls in the configuration, tell the health check so:
#
#   docker run --health-cmd "vitrine status --ca /etc/vitrine/ca.pem" ...
#
# The volume `models` is the registry that both share: the trainer adds
# versions, the server takes them up.

FROM debian:bookworm-slim AS build
WORKDIR /src
# The packages first: their layer outlives changes of the source.
COPY deploy/apt-packages.txt deploy/apt-packages.txt
RUN apt-get update \
    && xargs -a deploy/apt-packages.txt \
       apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN cmake --preset release \
    && cmake --build build/release \
       --target vitrine-server vitrine-trainer vitrine \
    && strip build/release/bin/vitrine-server \
       build/release/bin/vitrine-trainer \
       build/release/bin/vitrine-train-pieces build/release/bin/vitrine

FROM debian:bookworm-slim AS runtime
COPY deploy/apt-runtime-packages.txt /tmp/packages.txt
RUN apt-get update \
    && xargs -a /tmp/packages.txt \
       apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /tmp/packages.txt \
    && useradd --uid 10001 --user-group --no-create-home \
       --shell /usr/sbin/nologin vitrine \
    && install -d -o vitrine -g vitrine /var/lib/vitrine/models
COPY --from=build /src/build/release/lib/ /opt/vitrine/lib/
ENV PATH=/opt/vitrine/bin:$PATH
USER vitrine
WORKDIR /var/lib/vitrine
VOLUME /var/lib/vitrine/models

FROM runtime AS trainer
COPY --from=build /src/build/release/bin/vitrine-trainer \
     /src/build/release/bin/vitrine-train-pieces /opt/vitrine/bin/
ENTRYPOINT ["vitrine-trainer"]
CMD ["--help"]

# Last, so that it is what `docker build .` makes.
FROM runtime AS server
COPY --from=build /src/build/release/bin/vitrine-server \
     /src/build/release/bin/vitrine /opt/vitrine/bin/
COPY deploy/server.textproto /etc/vitrine/server.textproto
EXPOSE 8500 9500
# Starting takes as long as the model's load.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["vitrine", "status", "--target", "127.0.0.1:8500", "--timeout", "2s"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vitrine-server"]
CMD ["--config", "/etc/vitrine/server.textproto"]
