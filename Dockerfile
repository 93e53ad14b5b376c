# The gateway as an image: the same lock, the same command and the same ports as the Makefile; a test compares them.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python -m venv /opt/gateway
COPY requirements.lock ./
RUN /opt/gateway/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway/ gateway/
RUN /opt/gateway/bin/python -m pip install --quiet --no-deps --no-build-isolation .
# Bytecode is made here: nobody can write it later.
RUN /opt/gateway/bin/python -m compileall -q /opt/gateway/lib

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/gateway
COPY --from=build /opt/gateway /opt/gateway
COPY config/ /etc/gateway/
# Inside a container, its own address is every address; which of them is published is the host's affair.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_CONFIG=/etc/gateway/gateway.yaml \
    GATEWAY_LISTEN__HOST=0.0.0.0 \
    GATEWAY_OPERATIONS__HOST=0.0.0.0 \
    GATEWAY_STORAGE__DIRECTORY=/var/lib/gateway
USER 10001:10001
VOLUME /var/lib/gateway
EXPOSE 8080 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 9464, timeout=3); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.yaml"]
