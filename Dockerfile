# Train and serve on the CPU, from the same locks as `make setup`. Unverified: see docs/verified.md.
#   docker build -t llm-appliance .
#   docker run --rm -it -p 127.0.0.1:8000-8001:8000-8001 -v appliance:/data llm-appliance
FROM python:3.10-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/appliance
COPY requirements/cpu.txt requirements/data.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/cpu.txt \
    && pip install --no-cache-dir --require-hashes --no-deps -r requirements/data.txt
COPY pyproject.toml README.md ./
COPY appliance appliance
COPY serving serving
COPY provisioning provisioning
RUN pip install --no-cache-dir --no-build-isolation --no-deps .

RUN useradd --create-home appliance && install -d -o appliance /data
USER appliance
ENV APPLIANCE_HOME=/data
EXPOSE 8000 8001
ENTRYPOINT ["appliance"]
CMD ["up", "quickstart"]
