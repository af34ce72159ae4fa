/* Loads an engine's libraries as llama_cpp does, then one CPU plug-in, and prints the logits of a few tokens.

     engine_smoke LIBRARIES score PLUGIN...             score of each plug-in on this processor; 0: cannot run
     engine_smoke LIBRARIES run PLUGIN MODEL TOKEN...   reads the tokens at once, then the first STEPS again
     engine_smoke LIBRARIES best MODEL TOKEN...         the same, with the plug-in that ggml takes for the best

   Built and run by engine_smoke.py, for Linux and for Windows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "llama.h"

#define STEPS 8
#define THREADS 2

#ifdef _WIN32
#include <windows.h>
#define LLAMA "llama.dll"
#define GGML "ggml.dll"
typedef HMODULE library;
static library open_library(const char * path) { return LoadLibraryExA(path, NULL, 0); }
static void * symbol(library from, const char * name) { return (void *) GetProcAddress(from, name); }

/* What llama_cpp's Python does: neighbours are found through PATH. */
static void find_neighbours(const char * folder) {
    static char path[32768];
    char before[16384] = "";
    GetEnvironmentVariableA("PATH", before, sizeof before);
    snprintf(path, sizeof path, "%s;%s", folder, before);
    SetEnvironmentVariableA("PATH", path);
}
#else
#include <dlfcn.h>
#define LLAMA "libllama.so"
#define GGML "libggml.so"
typedef void * library;
static library open_library(const char * path) { return dlopen(path, RTLD_NOW | RTLD_GLOBAL); }
static void * symbol(library from, const char * name) { return dlsym(from, name); }
static void find_neighbours(const char * folder) { (void) folder; }
#endif

static void fail(const char * what, const char * name) {
    fprintf(stderr, "%s: %s\n", what, name);
    exit(1);
}

static library load(const char * folder, const char * name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    library opened = open_library(path);
    if (!opened) fail("cannot load", path);
    return opened;
}

static void * find(library from, const char * name) {
    void * found = symbol(from, name);
    if (!found) fail("no such function", name);
    return found;
}

#define TAKE(from, name) __typeof__(&name) my_##name = (__typeof__(&name)) find(from, #name)

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void print_scores(const char * folder, char ** plugins) {
    for (; *plugins; plugins++) {
        int (*score)(void) = (int (*)(void)) find(load(folder, *plugins), "ggml_backend_score");
        printf("score %s %d\n", *plugins, score());
    }
}

static void print_logits(library llama, const char * model_path, char ** tokens, int n_tokens) {
    TAKE(llama, llama_backend_init);
    TAKE(llama, llama_model_default_params);
    TAKE(llama, llama_model_load_from_file);
    TAKE(llama, llama_context_default_params);
    TAKE(llama, llama_init_from_model);
    TAKE(llama, llama_model_get_vocab);
    TAKE(llama, llama_vocab_n_tokens);
    TAKE(llama, llama_batch_get_one);
    TAKE(llama, llama_decode);
    TAKE(llama, llama_get_logits_ith);
    TAKE(llama, llama_print_system_info);

    my_llama_backend_init();
    struct llama_model * model = my_llama_model_load_from_file(model_path, my_llama_model_default_params());
    if (!model) fail("cannot load the model", model_path);
    struct llama_context_params parameters = my_llama_context_default_params();
    parameters.n_ctx = 256;
    parameters.n_threads = parameters.n_threads_batch = THREADS;
    struct llama_context * context = my_llama_init_from_model(model, parameters);
    if (!context) fail("no context", model_path);
    printf("info %s\n", my_llama_print_system_info());
    int n_vocab = my_llama_vocab_n_tokens(my_llama_model_get_vocab(model));

    llama_token * batch = calloc((size_t) n_tokens, sizeof *batch);
    for (int i = 0; i < n_tokens; i++) batch[i] = atoi(tokens[i]);
    for (int step = 0; step <= STEPS; step++) {
        int failed = step == 0 ? my_llama_decode(context, my_llama_batch_get_one(batch, n_tokens))
                               : my_llama_decode(context, my_llama_batch_get_one(batch + step - 1, 1));
        if (failed) fail("cannot decode", model_path);
        const float * logits = my_llama_get_logits_ith(context, -1);
        for (int i = 0; i < n_vocab; i++) printf("%.9g%c", logits[i], i + 1 < n_vocab ? ' ' : '\n');
    }
    fflush(stdout);
}

int main(int argc, char ** argv) {
    if (argc < 4) fail("usage", "engine_smoke LIBRARIES score|run|best ...");
    find_neighbours(argv[1]);
    library llama = load(argv[1], LLAMA);
    library ggml = load(argv[1], GGML);
    TAKE(llama, llama_log_set);
    my_llama_log_set(quiet, NULL);
    if (strcmp(argv[2], "score") == 0) {
        print_scores(argv[1], argv + 3);
        return 0;
    }
    int first = 3;
    if (strcmp(argv[2], "run") == 0) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], argv[first++]);
        TAKE(ggml, ggml_backend_load);
        if (!my_ggml_backend_load(path)) fail("cannot load the plug-in", path);
    } else {
        TAKE(ggml, ggml_backend_load_all_from_path);
        my_ggml_backend_load_all_from_path(argv[1]);
    }
    if (argc - first - 1 < STEPS) fail("too few tokens for", argv[first]);
    print_logits(llama, argv[first], argv + first + 1, argc - first - 1);
    return 0;
}
