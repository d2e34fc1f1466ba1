// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/environment.h"
#include "base/stop_signals.h"
#include "cli/generator.h"
#include "cli/record.h"
#include "serve/http_server.h"

namespace farskip {
namespace {

constexpr const char* kKeyVariable = "FARSKIP_API_KEY";

struct Options {
  GeneratorOptions generator;
  HttpOptions http;
  std::string model_name, api_key_file;
  std::int64_t most_open = 256, body_mib = 16, timeout = 600, rank_timeout = 120;
};

/// What ranks of a job must be asked alike; what clients see is the first one's business.
JobRequest request_of(const Options& o) {
  JobRequest request{.timeout_seconds = static_cast<double>(o.rank_timeout),
                     .cure = "start the server again"};
  request.alike.set("command", make_node("serve"));
  set_alike(request.alike, o.generator);
  return request;
}

/// Of the file's first line, else of the environment; empty: none is asked for.
std::string read_api_key(const std::string& file) {
  constexpr std::uint64_t most = 4096;
  std::string key =
      file.empty() ? environment_variable(kKeyVariable).value_or("") : read_text_file(file, most);
  const std::string where = file.empty() ? kKeyVariable : file;
  while (key.ends_with('\n') || key.ends_with('\r')) key.pop_back();
  const bool is_word = key.find_first_of(" \t\r\n") == std::string::npos;
  if ((key.empty() && (!file.empty() || environment_variable(kKeyVariable))) || !is_word)
    throw UsageError(fmt::format("{}: holds no API key; give one word without spaces", where));
  return key;
}

/// The name of the model for clients: that of its folder.
std::string name_of_folder(const fs::path& folder) {
  const fs::path whole = fs::absolute(folder).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

/// What clients ask. A template that cannot be read is said at once, and to clients who need it.
ServedModel describe_model(const Options& options, const Generator& g, const CacheSize& cache,
                           const Logger& logger) {
  ServedModel model{
      .name = options.model_name.empty() ? name_of_folder(options.generator.model) : options.model_name,
      .tokenizer = g.tokenizer(),
      .vocab_size = g.model.config.vocab_size,
      .max_positions = g.model.config.max_positions,
      .max_text_tokens = std::min(g.model.config.max_positions, cache.num_blocks * cache.block_tokens)};
  if (!g.tokenizer())
    logger.warning("{}: holds no tokenizer.json; prompts have to be token ids", g.model.folder.string());
  try {
    if (const auto found = find_chat_template(g.companions)) {
      model.bos_token = found->bos_token;
      model.eos_token = found->eos_token;
      model.chat_template = jinja::Template::parse(found->text, found->where);
    }
  } catch (const DataError& error) {
    model.chat_fault = error.what();
    logger.warning("chat is not served: {}", error.what());
  }
  return model;
}

void print_address(const HttpOptions& http, int port, const std::string& model, const CommonOptions& common) {
  print_result({{"host", http.host}, {"port", port}, {"model", model}},
               "serving {model} at http://{host}:{port}/v1", common);
  std::fflush(stdout);
}

/// The rank that clients talk to does this. The model runs on this thread, as MPI wants it.
void serve_clients(const Options& options, const CommonOptions& common, const Generator& g,
                   CachedEngine& engine, const std::string& api_key, const StopSignals& stop) {
  const Logger& logger = g.context.logger;
  ServeMetrics metrics;
  GenerationLoop loop(engine, batch_options(g, options.generator.batch), options.most_open, metrics, logger);
  const ServedModel model = describe_model(options, g, engine.size(), logger);
  Api api(model, loop, metrics, {.api_key = api_key, .timeout = std::chrono::seconds(options.timeout)});
  HttpOptions http = options.http;
  http.max_open = options.most_open;
  http.max_body_bytes = static_cast<std::size_t>(options.body_mib) << 20U;
  const HttpServer server(http, api);
  print_address(http, server.port(), model.name, common);
  loop.run([&] { return stop.requested(); });
}

ExitCode serve(const Options& options, const CommonOptions& common, Job& job) {
  const StopSignals stop;
  auto starting = std::make_unique<HeartbeatPatience>(*job.heartbeat);
  const std::string api_key = job.world.rank() == 0 ? read_api_key(options.api_key_file) : "";
  const Generator g = open_generator(options.generator, false, job);
  CachedEngine engine =
      make_cached_engine(options.generator, g, options.generator.batch, g.model.config.max_positions);
  starting.reset();
  if (!leads(engine, job)) return ExitCode::ok;
  serve_clients(options, common, g, engine, api_key, stop);
  job.logger.info("all requests were answered");
  return ExitCode::ok;
}

ExitCode run(const Options& options, const CommonOptions& common) {
  if (http_library().empty())
    throw UsageError(
        "this build has no HTTP; install cpp-httplib (scripts/install_dependencies.sh does), configure and "
        "build again");
  return run_job(common, request_of(options), [&](Job& job) { return serve(options, common, job); });
}

}  // namespace

void add_serve(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add("serve", "Continue texts for clients over HTTP, as OpenAI's API");
  add_generator_options(sub, o->generator);
  sub.text("--host", o->http.host, "Address to listen on; 0.0.0.0: all of this machine");
  sub.integer("--port", o->http.port, "Port to listen on (0: one that is free)", 0, 65535);
  sub.text("--model-name", o->model_name, "Name of the model for clients (default: that of its folder)");
  sub.path(
      "--api-key-file", o->api_key_file,
      fmt::format("File with the key that clients have to send (default: ${}, else none)", kKeyVariable));
  sub.integer("--max-requests", o->most_open, "Texts that are continued or wait for it; more are refused", 1,
              1 << 14);
  sub.integer("--max-body-mib", o->body_mib, "Largest body of a request", 1, 1024);
  sub.integer("--timeout", o->timeout,
              "Seconds after which a text ends as it is, or is refused if it still waits", 1, 86400);
  sub.integer(
      "--rank-timeout", o->rank_timeout,
      "On several ranks: seconds without a sign of life of another, after which the job ends (0: never)", 0,
      86400);
  sub.run_on_ranks([o](const CommonOptions& common) { return run(*o, common); });
}

}  // namespace farskip
