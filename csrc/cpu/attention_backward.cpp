#include "attention_blocks.h"
extern "C" void FASTSEQ_NAME(fastseq_attention_backward_,
                             FASTSEQ_ISA)(const fastseq::AttentionBackwardArgs*) {}
