/* Prints the numbers of replay.recorder.frames as the compiler computes them from CPython's headers: name and value. */
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "internal/pycore_frame.h"
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interpframe.h"
#endif

typedef struct _PyInterpreterFrame Frame;

#define TELL(name, value) printf("%s %ld\n", name, (long)(value))
#define TELL_BIT(name, field)                                                                                          \
    do {                                                                                                               \
        PyASCIIObject text;                                                                                            \
        unsigned int word = 0;                                                                                         \
        memset(&text, 0, sizeof text);                                                                                 \
        text.state.field = 1;                                                                                          \
        memcpy(&word, &text.state, sizeof word);                                                                       \
        TELL(name, __builtin_ctz(word));                                                                               \
    } while (0)

int main(void)
{
    TELL("INTERPRETER_AT", offsetof(PyThreadState, interp));
    TELL("TYPE_AT", offsetof(PyObject, ob_type));
    TELL("ITEMS_AT", offsetof(PyVarObject, ob_size));
    TELL("FILENAME_AT", offsetof(PyCodeObject, co_filename));
    TELL("QUALNAME_AT", offsetof(PyCodeObject, co_qualname));
    TELL("LINE_TABLE_AT", offsetof(PyCodeObject, co_linetable));
    TELL("STR_LENGTH_AT", offsetof(PyASCIIObject, length));
    TELL("STR_STATE_AT", offsetof(PyASCIIObject, state));
    TELL_BIT("STR_KIND_BIT", kind);
    TELL_BIT("STR_COMPACT_BIT", compact);
    TELL_BIT("STR_ASCII_BIT", ascii);
    TELL("BYTES_AT", offsetof(PyBytesObject, ob_sval));
    TELL("UNIT_BYTES", sizeof(_Py_CODEUNIT));
    TELL("OWNED_BY_GENERATOR", FRAME_OWNED_BY_GENERATOR);
#if PY_VERSION_HEX >= 0x030e0000
    TELL("OWNED_BY_C", FRAME_OWNED_BY_INTERPRETER);
#elif PY_VERSION_HEX >= 0x030c0000 /* does not exist in older versions */
    TELL("OWNED_BY_C", FRAME_OWNED_BY_CSTACK);
#endif
#if PY_VERSION_HEX >= 0x030d0000
    TELL("state_to_frame", offsetof(PyThreadState, current_frame));
#else
    TELL("state_to_frame", offsetof(PyThreadState, cframe));
    TELL("state_to_frame", offsetof(_PyCFrame, current_frame));
#endif
#if PY_VERSION_HEX >= 0x030d0000
    TELL("frame_code", offsetof(Frame, f_executable));
    TELL("frame_instruction", offsetof(Frame, instr_ptr));
#else
    TELL("frame_code", offsetof(Frame, f_code));
    TELL("frame_instruction", offsetof(Frame, prev_instr));
#endif
    TELL("frame_previous", offsetof(Frame, previous));
    TELL("frame_owner", offsetof(Frame, owner));
    TELL("first_line", offsetof(PyCodeObject, co_firstlineno));
    TELL("first_traceable", offsetof(PyCodeObject, _co_firsttraceable));
    TELL("instructions", offsetof(PyCodeObject, co_code_adaptive));
    TELL("ascii_text", sizeof(PyASCIIObject));
    TELL("other_text", sizeof(PyCompactUnicodeObject));
    TELL("other_text of a subclass", offsetof(PyUnicodeObject, data));
#if PY_VERSION_HEX >= 0x030e0000
    TELL("code_tags", Py_TAG_BITS);
#else
    TELL("code_tags", 0);
#endif
    return 0;
}
