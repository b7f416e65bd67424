#include "attention_blocks.h"
extern "C" void FASTSEQ_NAME(fastseq_attention_decode_,
                             FASTSEQ_ISA)(const fastseq::DecodeArgs*) {}
