# The server as an image; it runs every other command of `scorekeeper` as well. docs/deployment.md has its contract.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# onnxruntime asks the system for this locale, for models that turn texts into lower case.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends locales >/dev/null \
    && localedef -i en_US -f UTF-8 --no-archive en_US.UTF-8
WORKDIR /source
# The locked versions, checked by their hashes, are a layer of their own, rebuilt only when the lock changes. The package
# is then built and installed from these files alone: what the server does not need at run time stays out of the image.
COPY requirements.lock ./
RUN pip download --quiet --require-hashes --dest /wheels --requirement requirements.lock
COPY . ./
RUN pip install --quiet --no-index --find-links /wheels . \
    && ln -s "$(python -I -c 'from app.settings import BUNDLED_DIR; print(BUNDLED_DIR)')" /venv/bundled \
    && pip uninstall --quiet --yes pip setuptools && find /venv -type d -name tests -prune -exec rm -r {} +

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin scorekeeper \
    && install --directory --owner scorekeeper --group scorekeeper --mode 0700 /data
COPY --from=build /usr/lib/locale/en_US.utf8 /usr/lib/locale/en_US.utf8
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ALEMBIC_CONFIG=/venv/bundled/alembic.ini
ENV DATA_DIR=/data LOG_FORMAT=json
USER 10001:10001
WORKDIR /
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-IS", "-c", \
    "import sys, http.client as http; server = http.HTTPConnection('127.0.0.1', 8000, timeout=4); \
    server.request('GET', '/health/ready'); sys.exit(server.getresponse().status != 200)"]
CMD ["scorekeeper", "serve", "--host", "0.0.0.0"]
