# One image for control plane, workers and NATS. Every step is one of the project's own scripts.

FROM node:24-bookworm AS build
WORKDIR /margay
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake ninja-build python3-pip && rm -rf /var/lib/apt/lists/*
# Packages and nats-server change less often than the sources.
COPY package.json package-lock.json ./
COPY bin bin
RUN npm ci --omit=dev --no-audit --no-fund
COPY . .
# Builds the native part and fetches nats-server. The image has its own Node.
RUN node bin/setup.mjs && cp .margay/bin/nats-server /usr/local/bin/ \
  && rm -rf .margay native/build/CMakeFiles node_modules/node-linux-*

FROM node:24-bookworm-slim
WORKDIR /margay
ENV NODE_ENV=production
COPY --from=build /usr/local/bin/nats-server /usr/local/bin/nats-server
COPY --from=build /margay /margay
# Nobody in particular; nothing in the image is its to write.
USER 65532:65532
CMD ["node", "control-plane/main.ts"]
