FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* \
 && mkdir /data && chown redis /data && chmod 777 /data
WORKDIR /data
EXPOSE 6379
ENTRYPOINT []
CMD ["redis-server", "--save", "", "--protected-mode", "no"]
