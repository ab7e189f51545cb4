// Instantiates the kernels of one operation: three element types x five paths (cluster, single, direct, staged,
// general), and the path of paired rows for caps in place.
#pragma once

#include "cluster.cuh"
#include "direct.cuh"
#include "general.cuh"
#include "pairs.cuh"
#include "single.cuh"
#include "staged.cuh"

// AXISCAP_OPERATION(name, add, norm) defines axiscap_<name>_<f32|f16|bf16>_<cluster|single|direct|staged|general>.
#define AXISCAP_OPERATION(name, add, norm) \
    AXISCAP_OPERATION_ON(name, f32, F32, add, norm) \
    AXISCAP_OPERATION_ON(name, f16, F16, add, norm) \
    AXISCAP_OPERATION_ON(name, bf16, BF16, add, norm)

#define AXISCAP_OPERATION_ON(name, type, E, add, norm) \
    AXISCAP_CLUSTER_KERNEL(axiscap_##name##_##type##_cluster, 512, 8) { \
        axiscap::ClusterRows<axiscap::E, add, norm>(args).run(); \
    } \
    AXISCAP_RESIDENT_KERNEL(axiscap_##name##_##type##_single, 512, (norm) ? 1 : 2) { \
        axiscap::SingleRows<axiscap::E, add, norm>(args).run(); \
    } \
    AXISCAP_KERNEL(axiscap_##name##_##type##_direct, 512) { \
        axiscap::DirectRows<axiscap::E, add, norm>(args).run(); \
    } \
    AXISCAP_KERNEL(axiscap_##name##_##type##_staged, 1024) { \
        axiscap::StagedRows<axiscap::E, add, norm>(args).run(); \
    } \
    AXISCAP_KERNEL(axiscap_##name##_##type##_general, 1024) { \
        axiscap::GeneralRows<axiscap::E, add, norm>(args).run(); \
    }

// AXISCAP_PAIRS(type, E) defines axiscap_cap_<type>_pairs.
#define AXISCAP_PAIRS(type, E) \
    AXISCAP_KERNEL(axiscap_cap_##type##_pairs, 512) { axiscap::PairedRows<axiscap::E>(args).run(); }
