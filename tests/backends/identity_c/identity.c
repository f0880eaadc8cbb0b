/* A Triton backend of one's own: the identity, Y = X, for one input and one output.
 *
 * Built by   gcc -O2 -Wall -Wextra -Werror -fPIC -shared -o libtriton_identity_c.so identity.c
 * and put into BACKENDS/identity_c/. The prototypes below are declared by hand, because a server taken from a wheel
 * brings no headers; they are those of the backend API, major version 1, and resolved by the server at load.
 */
#include <stdint.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONBACKEND_Backend TRITONBACKEND_Backend;
typedef struct TRITONBACKEND_ModelInstance TRITONBACKEND_ModelInstance;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;
typedef struct TRITONBACKEND_Response TRITONBACKEND_Response;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Output TRITONBACKEND_Output;

enum { API_MAJOR = 1 };
enum { ERROR_INTERNAL = 1, ERROR_UNSUPPORTED = 5 };   /* TRITONSERVER_Error_Code */
enum { MEMORY_CPU = 0, MEMORY_CPU_PINNED = 1 };       /* TRITONSERVER_MemoryType */
enum { RELEASE_ALL = 1, RESPONSE_FINAL = 1 };         /* request release and response complete flags */

/* Enums of the API are passed as int, which is what gcc makes of them. */
TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error *error);
TRITONSERVER_Error *TRITONBACKEND_ApiVersion(uint32_t *major, uint32_t *minor);
TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(
    TRITONBACKEND_Request *request, const uint32_t index, TRITONBACKEND_Input **input);
TRITONSERVER_Error *TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input *input, const char **name, int *datatype, const int64_t **shape, uint32_t *dims_count,
    uint64_t *byte_size, uint32_t *buffer_count);
TRITONSERVER_Error *TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input *input, const uint32_t index, const void **buffer, uint64_t *byte_size, int *memory_type,
    int64_t *memory_type_id);
TRITONSERVER_Error *TRITONBACKEND_ResponseNew(TRITONBACKEND_Response **response, TRITONBACKEND_Request *request);
TRITONSERVER_Error *TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response *response, TRITONBACKEND_Output **output, const char *name, const int datatype,
    const int64_t *shape, const uint32_t dims_count);
TRITONSERVER_Error *TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output *output, void **buffer, const uint64_t byte_size, int *memory_type, int64_t *memory_type_id);
TRITONSERVER_Error *TRITONBACKEND_ResponseSend(
    TRITONBACKEND_Response *response, const uint32_t flags, TRITONSERVER_Error *error);
TRITONSERVER_Error *TRITONBACKEND_RequestRelease(TRITONBACKEND_Request *request, uint32_t flags);

#define TRY(call) do { TRITONSERVER_Error *error_ = (call); if (error_ != NULL) return error_; } while (0)

static int is_host(int memory_type) { return memory_type == MEMORY_CPU || memory_type == MEMORY_CPU_PINNED; }

static void drop(TRITONSERVER_Error *error) { if (error != NULL) TRITONSERVER_ErrorDelete(error); }

/* An input may come in several pieces; the output is one block of the same bytes. */
static TRITONSERVER_Error *copy_pieces(TRITONBACKEND_Input *input, uint32_t pieces, char *to, uint64_t size) {
  uint64_t done = 0;
  for (uint32_t i = 0; i < pieces; ++i) {
    const void *piece = NULL;
    uint64_t bytes = 0;
    int memory = MEMORY_CPU;
    int64_t memory_id = 0;
    TRY(TRITONBACKEND_InputBuffer(input, i, &piece, &bytes, &memory, &memory_id));
    if (!is_host(memory)) return TRITONSERVER_ErrorNew(ERROR_UNSUPPORTED, "identity_c: input is not in host memory");
    if (bytes > size - done) return TRITONSERVER_ErrorNew(ERROR_INTERNAL, "identity_c: input longer than announced");
    if (bytes > 0) memcpy(to + done, piece, bytes);
    done += bytes;
  }
  if (done != size) return TRITONSERVER_ErrorNew(ERROR_INTERNAL, "identity_c: input shorter than announced");
  return NULL;
}

static TRITONSERVER_Error *answer(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response) {
  TRITONBACKEND_Input *input = NULL;
  TRITONBACKEND_Output *output = NULL;
  const char *name = NULL;
  const int64_t *shape = NULL;
  int datatype = 0, memory = MEMORY_CPU;
  uint32_t dims = 0, pieces = 0;
  uint64_t size = 0;
  int64_t memory_id = 0;
  void *buffer = NULL;
  TRY(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
  TRY(TRITONBACKEND_InputProperties(input, &name, &datatype, &shape, &dims, &size, &pieces));
  TRY(TRITONBACKEND_ResponseOutput(response, &output, "Y", datatype, shape, dims));
  TRY(TRITONBACKEND_OutputBuffer(output, &buffer, size, &memory, &memory_id));
  if (!is_host(memory)) return TRITONSERVER_ErrorNew(ERROR_UNSUPPORTED, "identity_c: output is not in host memory");
  return copy_pieces(input, pieces, buffer, size);
}

/* Called once, when the first model that names this backend loads. */
TRITONSERVER_Error *TRITONBACKEND_Initialize(TRITONBACKEND_Backend *backend) {
  uint32_t major = 0, minor = 0;
  (void)backend;
  TRY(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != API_MAJOR) return TRITONSERVER_ErrorNew(ERROR_UNSUPPORTED, "identity_c: needs backend API version 1");
  return NULL;
}

/* Returning success makes the requests ours: each is answered, with data or an error, and released. */
TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request **requests, const uint32_t count) {
  (void)instance;
  for (uint32_t i = 0; i < count; ++i) {
    TRITONBACKEND_Response *response = NULL;
    TRITONSERVER_Error *failed = TRITONBACKEND_ResponseNew(&response, requests[i]);
    if (failed == NULL) {
      TRITONSERVER_Error *error = answer(requests[i], response);
      failed = TRITONBACKEND_ResponseSend(response, RESPONSE_FINAL, error);
      drop(error);
    }
    drop(failed);
    drop(TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL));
  }
  return NULL;
}
