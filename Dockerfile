# docker build --tag sddlm .
# docker run --rm --volume "$PWD:/work" sddlm sample stories
FROM python:3.12-slim
RUN --mount=type=bind,target=/source,rw pip install --no-cache-dir '/source[plots]'
WORKDIR /work
ENTRYPOINT ["sddlm"]
