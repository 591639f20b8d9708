//! That the structures checked in are those of the headers installed here, as a C compiler sees
//! them. bindgen's own assertions hold them to what it saw when it made them.

use super::verbs::*;
use std::io::Write;
use std::process::{Command, Stdio};

/// Lines of C that compare one structure: its size, and the place of each field named.
macro_rules! layout {
    ($($name:ident { $($field:ident $(= $c:literal)?),* })*) => {{
        let mut lines = Vec::new();
        $(
            let name = stringify!($name);
            lines.push(format!("_Static_assert(sizeof(struct {name}) == {}, \"{name}\");",
                size_of::<$name>()));
            $(
                let field = stringify!($field);
                $(let field = { let _ = field; $c };)?
                lines.push(format!(
                    "_Static_assert(offsetof(struct {name}, {field}) == {}, \"{name}.{field}\");",
                    core::mem::offset_of!($name, $field)));
            )*
        )*
        lines
    }};
}

/// Lines of C that compare constants.
macro_rules! constants {
    ($($kind:ident: $($name:ident),*;)*) => {
        vec![$($(format!("_Static_assert({0} == {1}, \"{0}\");", stringify!($name), $kind::$name.0),)*)*]
    };
}

fn lines() -> Vec<String> {
    let mut lines = layout! {
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, abi_compat }
        ibv_context_ops { poll_cq, req_notify_cq, post_send, post_recv }
        ibv_device { node_type, transport_type, name, dev_name }
        ibv_device_attr { max_mr_size, max_qp_wr, max_sge, max_cqe, max_qp_rd_atom, phys_port_cnt }
        ibv_port_attr { state, max_mtu, active_mtu, max_msg_sz, lid, link_layer, flags, port_cap_flags2 }
        ibv_gid_entry { gid, gid_index, port_num, gid_type, ndev_ifindex }
        ibv_pd { context, handle }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_comp_channel { context, fd, refcnt }
        ibv_cq { context, channel, cq_context, handle, cqe }
        ibv_wc {
            wr_id, status, opcode, vendor_err, byte_len, __bindgen_anon_1 = "imm_data", qp_num,
            src_qp, wc_flags, pkey_index, slid, sl, dlid_path_bits
        }
        ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap,
            ah_attr, pkey_index, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num,
            timeout, retry_cnt, rnr_retry
        }
        ibv_ah_attr { grh, dlid, sl, is_global, port_num }
        ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        ibv_sge { addr, length, lkey }
        ibv_send_wr {
            wr_id, next, sg_list, num_sge, opcode, send_flags, __bindgen_anon_1 = "imm_data", wr
        }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_async_event { element, event_type }
    };
    lines.push(format!(
        "_Static_assert(offsetof(struct ibv_send_wr, wr.rdma.rkey) == {}, \"rkey\");",
        core::mem::offset_of!(ibv_send_wr, wr.rdma.rkey)
    ));
    lines.extend(constants! {
        ibv_wr_opcode: IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ;
        ibv_send_flags: IBV_SEND_SIGNALED, IBV_SEND_INLINE;
        ibv_access_flags: IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_READ;
        ibv_wc_status: IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, IBV_WC_REM_ACCESS_ERR,
            IBV_WC_REM_INV_REQ_ERR, IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR;
        ibv_wc_opcode: IBV_WC_RECV, IBV_WC_RECV_RDMA_WITH_IMM;
        ibv_wc_flags: IBV_WC_WITH_IMM;
        ibv_qp_type: IBV_QPT_RC;
        ibv_qp_state: IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR;
        ibv_qp_attr_mask: IBV_QP_STATE, IBV_QP_ACCESS_FLAGS, IBV_QP_PKEY_INDEX, IBV_QP_PORT,
            IBV_QP_AV, IBV_QP_PATH_MTU, IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY,
            IBV_QP_RQ_PSN, IBV_QP_MAX_QP_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER, IBV_QP_SQ_PSN,
            IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_DEST_QPN;
        ibv_port_state: IBV_PORT_DOWN, IBV_PORT_ACTIVE;
        ibv_mtu: IBV_MTU_256, IBV_MTU_1024, IBV_MTU_4096;
        ibv_event_type: IBV_EVENT_CQ_ERR, IBV_EVENT_QP_FATAL, IBV_EVENT_QP_ACCESS_ERR,
            IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR, IBV_EVENT_DEVICE_FATAL;
    });
    lines
}

enum Verdict {
    Same,
    Different(String),
    NoHeaders,
}

fn compile(lines: &[String]) -> Verdict {
    let source =
        format!("#include <stddef.h>\n#include <infiniband/verbs.h>\n{}\n", lines.join("\n"));
    let mut command = Command::new("cc");
    command.args(["-fsyntax-only", "-x", "c", "-"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else { return Verdict::NoHeaders };
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Verdict::Same,
        false if told.contains("infiniband/verbs.h: No such file") => Verdict::NoHeaders,
        false => Verdict::Different(told),
    }
}

#[test]
fn structures_and_constants_are_those_of_the_headers() {
    let mut lines = lines();
    assert!(lines.len() > 150, "{}", lines.len());
    match compile(&lines) {
        Verdict::NoHeaders => {
            println!("skipped: no rdma-core headers here: apt-get install libibverbs-dev");
            return;
        }
        Verdict::Different(told) => panic!("{told}"),
        Verdict::Same => {}
    }
    // One that is wrong is found.
    lines.push("_Static_assert(sizeof(struct ibv_sge) == 17, \"planted\");".into());
    let Verdict::Different(told) = compile(&lines) else { panic!("it compares nothing") };
    assert!(told.contains("planted"), "{told}");
}
